// daybook fsck: recovery and checking, offline.
//
//   lock ─► slots ─┬─ clean, no -f ───────────────────────────────► "clean"
//                  └─► replay (in memory with -n) ─► check ─► repair what is beyond doubt (-p, -y) ─► verdict
//
// (Q1) With -n nothing is written to the image: it is opened for reading, and what recovery writes stays in an OverlayDevice.
// (Q2) Without -n the image is written to by recovery and by repairs that -p or -y allow; what else is wrong stays as it is.
// (Q3) Nobody writes to the image meanwhile: the writer's lock is held, or with -n kept from everybody else.

import ArgumentParser
import Check
import Device
import Format
import Glibc
import Synchronization
import Volume

/// Exit status of fsck(8): a bit mask.
enum FsckStatus {
    static let clean: Int32 = 0
    static let corrected: Int32 = 1
    static let rebootNeeded: Int32 = 2
    static let uncorrected: Int32 = 4
    static let operationalError: Int32 = 8
    static let usage: Int32 = 16
    static let cancelled: Int32 = 32
}

struct FsckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fsck", abstract: "Replay the journal, check everything, repair.",
        discussion: """
            Without -n the journal is replayed first, as mounting would. A filesystem that was unmounted cleanly is checked only with -f.
            What can be repaired without a doubt is repaired with -p or -y; Docs/FSCK.md lists all findings.

            Exit status: 0 no errors, 1 errors corrected (or journal replayed), 4 errors left, 8 operational error, 16 usage, 32 cancelled; \
            their sum for several.
            """)

    @Flag(name: .customShort("n"), help: "Change nothing at all; only say what is wrong.")
    var changeNothing = false
    @Flag(name: [.customShort("p"), .customShort("a")], help: "Repair what can be repaired without a doubt, without asking.")
    var preen = false
    @Flag(name: .customShort("y"), help: "Repair all that can be repaired, without asking.")
    var repairAll = false
    @Flag(name: .customShort("f"), help: "Check even if the filesystem was unmounted cleanly.")
    var force = false
    @Flag(name: .customLong("data"), help: "Read all file data as well and compare checksums (implies -f).")
    var verifyData = false
    @Option(name: .customLong("progress"), help: ArgumentHelp("Show progress on this descriptor (also -C[FD]).", valueName: "fd"))
    var progress: Int32?
    @Flag(name: .customShort("v"), help: "Say more.")
    var verbose = false
    @Flag(name: .customShort("V"), help: "Print the version.")
    var printVersion = false
    @Argument(help: ArgumentHelp("Image file or block device.", valueName: "image|device"))
    var image: String?

    func run() throws {
        if printVersion {
            print("daybook fsck \(version)")
            return
        }
        guard let image else { throw UsageError("which image or device?") }
        guard [changeNothing, preen, repairAll].filter({ $0 }).count < 2 else {
            throw UsageError("-n, -p and -y exclude each other")
        }
        if let progress, fcntl(progress, F_GETFD) < 0 { throw UsageError("-C\(progress): no such descriptor") }
        Cancellation.install()
        let session = try FsckSession(self, image)
        throw ExitCode(try session.run())
    }
}

// MARK: cancelling

/// Whether SIGINT or SIGTERM has come. A recovery under way is finished first: it takes moments, and half of it would have to be done again.
private enum Cancellation {
    static let flag = Atomic<Bool>(false)

    static func install() {
        // The handler must not be the first to touch the flag.
        _ = flag.load(ordering: .relaxed)
        for number in [SIGINT, SIGTERM] {
            var action = sigaction()
            action.__sigaction_handler.sa_handler = { _ in Cancellation.flag.store(true, ordering: .relaxed) }
            sigaction(number, &action, nil)
        }
    }
    static var isWanted: Bool { flag.load(ordering: .relaxed) }
}

// MARK: progress

/// `-C`: a bar for people on a terminal or descriptor 0, else lines as e2fsck writes them: phase, done, of how much, image.
private final class ProgressLine {
    private let descriptor: Int32
    private let image: String
    private let isBar: Bool
    private var last = ""

    init?(_ descriptor: Int32?, _ image: String) {
        guard let descriptor else { return nil }
        self.descriptor = descriptor == 0 ? 1 : descriptor
        self.image = image
        isBar = descriptor == 0 || isatty(descriptor) == 1
    }

    func show(_ phase: CheckPhase, _ part: Double) {
        let percent = Int(max(0, min(1, part)) * 100)
        let line = isBar
            ? "\r\(image): \(rightPadded(phase.name, 8)) \(leftPadded(String(percent), 3)) %"
            : "\(phase.rawValue) \(percent) 100 \(image)\n"
        if line != last { put(line) }
        last = line
    }

    func end() {
        if isBar && !last.isEmpty { put("\r" + String(repeating: " ", count: last.count) + "\r") }
        last = ""
    }

    private func put(_ text: String) {
        var text = text
        text.withUTF8 { _ = write(descriptor, $0.baseAddress!, $0.count) }
    }
}

// MARK: one run

private final class FsckSession {
    private let command: FsckCommand
    private let path: String
    private let file: FileDevice
    private let lock: ImageLock
    private let bar: ProgressLine?
    private var status: Int32 = 0

    init(_ command: FsckCommand, _ image: String) throws(CommandError) {
        self.command = command
        guard let resolved = ProcessFiles.resolved(image) else { throw .missing(image) }
        path = resolved
        do throws(DeviceError) { file = try FileDevice(path: path, access: command.changeNothing ? .readOnly : .readWrite) } catch {
            throw CommandError(error.description)
        }
        do throws(LockError) {
            lock = try ImageLock.afterUnmount(path: path) { [file, path] () throws(LockError) in
                command.changeNothing
                    ? try ImageLock.excludeWriters(descriptor: file.descriptor, path: path)
                    : try ImageLock.acquireWriter(descriptor: file.descriptor, path: path)
            }
        } catch { throw CommandError(error.description) }
        bar = ProgressLine(command.progress, path)
    }

    /// Whether this version may write to the filesystem at all.
    private var mayWrite = true
    private var mayRepair: Bool { mayWrite && (command.preen || command.repairAll) }

    func run() throws(CommandError) -> Int32 {
        defer { withExtendedLifetime(lock) {} }
        var slots = try readSlots(file)
        if slots.newest.isClean && slots.findings.isEmpty && !command.force && !command.verifyData {
            let superblock = slots.newest
            print("\(path): clean, \(counted(superblock.checkpoint.inodes, "inode")), \(superblock.checkpoint.dataBlocks)/\(superblock.blockCount) data blocks")
            return FsckStatus.clean
        }
        for finding in slots.findings { say(finding) }
        if slots.newest.readOnlyCompatible & ~Superblock.knownReadOnlyCompatible != 0 {
            mayWrite = false
            if !command.changeNothing { print("\(path): has features that this version can only read; nothing will be repaired") }
        }
        // Findings of the slots that somebody has to answer for in the end.
        var open = Set(slots.findings.map(\.code))

        // What is marked as damaged is not written to before a check has found it in order.
        let inMemory = command.changeNothing || !mayWrite || open.contains(.markedDamaged)
        let target: any BlockDevice = inMemory ? OverlayDevice(file) : file
        if open.contains(.markedDamaged) { try unmark(slots, target) }
        if slots.needsReplay {
            if try replay(target) {
                if !inMemory {
                    status |= FsckStatus.corrected
                    // Recovery writes both slots.
                    open.remove(.slotDamaged)
                    slots = try readSlots(file)
                }
            } else {
                // The newest checkpoint can be checked even so.
                open.insert(.recoveryImpossible)
            }
        }
        let report = try check(target)
        open.formUnion(report.counts.keys)
        if open == [.markedDamaged] && mayRepair {
            try unmark(slots, file)
            corrected(.markedDamaged, "no damage was found, and the mark is gone", &open)
            if slots.needsReplay { _ = try replay(file) }
        } else if mayRepair {
            try repair(report, slots, &open)
        }
        return verdict(report, open)
    }

    /// Takes the mark of damage from the slots.
    private func unmark(_ slots: SlotState, _ device: any BlockDevice) throws(CommandError) {
        do throws(DeviceError) { try Repair.unmark(slots, device) } catch { throw CommandError(error.description) }
    }

    private func readSlots(_ device: any BlockDevice) throws(CommandError) -> SlotState {
        do throws(CheckError) { return try SlotState(device) } catch { throw refusal(error) }
    }

    private func refusal(_ error: CheckError) -> CommandError {
        switch error {
        case .unusable(let text, let isDaybook):
            CommandError(text, status: isDaybook ? FsckStatus.uncorrected : FsckStatus.operationalError)
        case .device(let error): CommandError(error.description)
        case .cancelled: CommandError("\(path): cancelled", status: status | FsckStatus.cancelled)
        }
    }

    // MARK: replaying

    /// Opens the filesystem as a mount would and closes it cleanly. False when that is impossible; then nothing was written.
    private func replay(_ device: any BlockDevice) throws(CommandError) -> Bool {
        let volume: Volume
        do throws(OpenError) {
            volume = try Volume.open(
                device, options: OpenOptions(), clock: { .now }, random: { SystemRandomNumberGenerator.word() },
                mayMoveHorizon: { [lock] in lock.extendHorizon(to: $0) || device is OverlayDevice }, onEvent: { Self.tell($0) })
        } catch {
            guard error.reason == .damaged else { throw CommandError(error.description) }
            say(Finding(.recoveryImpossible, error.description))
            return false
        }
        if let result = volume.recovery { tell(result, device) }
        do throws(OperationError) { try volume.close() } catch { throw failure(error) }
        if Cancellation.isWanted { throw refusal(.cancelled) }
        return true
    }

    private func failure(_ error: OperationError) -> CommandError {
        // Why is told by the volume, in words and with the image's name.
        if case .io(let text) = error { return CommandError(text) }
        return CommandError("\(path): \(error)")
    }

    private static func tell(_ event: VolumeEvent) {
        switch event {
        case .notice: break
        case .warning(let text), .failure(let text): printError("daybook fsck: \(text)")
        }
    }

    private func tell(_ result: ReplayResult, _ device: any BlockDevice) {
        let place = device is OverlayDevice ? ", in memory" : ""
        let what = result.records == 0
            ? "nothing to replay after sequence \(result.to)"
            : "replayed \(counted(result.records, "record")) in \(counted(result.frames, "frame")), sequences \(result.from.next) to \(result.to)\(place)"
        print("\(path): \(what)")
        if let end = result.end {
            print("\(path): the journal ends in chunk \(result.position.serial), block \(result.position.block): \(end)")
        }
    }

    // MARK: checking

    private func check(_ device: any BlockDevice) throws(CommandError) -> CheckReport {
        var options = CheckOptions()
        options.verifyData = command.verifyData
        let known = Set((try? SlotState(file))?.findings.map(\.code) ?? [])
        do throws(CheckError) {
            defer { bar?.end() }
            let checker = try Checker(
                device, options: options, progress: { [bar] in bar?.show($0, $1) }, isCancelled: { Cancellation.isWanted })
            let report = try checker.run()
            bar?.end()
            for finding in report.findings where !known.contains(finding.code) || finding.code.rawValue >= 200 { say(finding) }
            for (code, count) in report.counts.sorted(by: { $0.key < $1.key }) where count > Checker.findingLimit {
                print("\(path): \(code.label) \(count - Checker.findingLimit) more: \(code.meaning)")
            }
            return report
        } catch { throw refusal(error) }
    }

    private func say(_ finding: Finding) {
        let place = finding.path.map { " (\(shown($0)))" } ?? ""
        print("\(path): \(finding.description)\(place)")
    }

    // MARK: repairing

    private func repair(_ report: CheckReport, _ slots: SlotState, _ open: inout Set<FindingCode>) throws(CommandError) {
        do throws(DeviceError) {
            if open.contains(.slotDamaged), slots.slots[1 - slots.newestSlot] == nil {
                try Repair.slot(slots, file)
                corrected(.slotDamaged, "the damaged superblock slot has been written anew", &open)
            }
            if open.contains(.identityDamaged) || open.contains(.identityDiffers) {
                try Repair.identity(of: report.superblock, file)
                open.remove(.identityDiffers)
                corrected(.identityDamaged, "the copy of identity and geometry has been written anew", &open)
            }
        } catch { throw CommandError(error.description) }
        // Only a check that found everything else in order knows what belongs to nothing.
        guard open == [.blockLeaked] else { return }
        let volume: Volume
        do throws(OpenError) {
            volume = try Volume.open(
                file, options: OpenOptions(), clock: { .now }, random: { SystemRandomNumberGenerator.word() },
                mayMoveHorizon: { [lock] in lock.extendHorizon(to: $0) }, onEvent: { Self.tell($0) })
        } catch { throw CommandError(error.description) }
        let released = volume.release(leaked: report.leaks.map { ($0.start, $0.count) })
        do throws(OperationError) { try volume.close() } catch { throw failure(error) }
        corrected(.blockLeaked, "\(counted(released, "block")) that belonged to nothing freed", &open)
    }

    private func corrected(_ code: FindingCode, _ what: String, _ open: inout Set<FindingCode>) {
        open.remove(code)
        status |= FsckStatus.corrected
        print("\(path): repaired: \(what)")
    }

    // MARK: the verdict

    private func verdict(_ report: CheckReport?, _ open: Set<FindingCode>) -> Int32 {
        if let report, command.verbose {
            print("\(path): \(counted(report.inodes, "inode")), \(report.directories) of them directories; \(counted(UInt64(report.checkpoints), "checkpoint"))")
            print("\(path): \(counted(report.records, "record")) in \(counted(report.frames, "frame")) of retained journal")
            print("\(path): blocks: \(report.superblock.blockCount) in all, \(report.usedBlocks) used: \(report.dataBlocks) data, \(report.historyBlocks) history")
        }
        guard open.isEmpty else {
            status |= FsckStatus.uncorrected
            if !mayRepair && open.allSatisfy(\.isRepairable) {
                print("\(path): errors were found that fsck -p can repair")
            } else {
                print("\(path): errors were found and left as they are")
            }
            return status
        }
        if let report {
            print("\(path): \(status & FsckStatus.corrected != 0 ? "in order now" : "no errors"), \(counted(report.inodes, "inode")), \(report.dataBlocks)/\(report.superblock.blockCount) data blocks")
        }
        return status
    }
}

extension SystemRandomNumberGenerator {
    fileprivate static func word() -> UInt64 {
        var generator = SystemRandomNumberGenerator()
        return generator.next()
    }
}
