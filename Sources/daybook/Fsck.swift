// daybook fsck: recovery, checking and repair, offline.
//
//   lock ─► slots ─┬─ clean, no -f ───────────────────────────────────────────────► "clean"
//                  └─► replay ─► check ─┬─ nothing ─► (-p, -y: replay for good) ──► verdict
//                      (in memory with  └─ findings ─► Repairer: an overlay in which nothing is wrong any more
//                       -n, -p, -y)                     ├─ -n, or -p and it loses something: say so ──► verdict
//                                                       └─ -y, -p: undo file ─► blocks ─► slots ──────► verdict
//
// (Q1) With -n nothing is written to the image: it is opened for reading, and what recovery and repair write stays in an OverlayDevice.
// (Q2) Without -n, -p and -y the image is written to by recovery alone; what is wrong stays as it is.
// (Q3) Nobody writes to the image meanwhile: the writer's lock is held, or with -n kept from everybody else.
// (Q4) A repair begins with the image as it was found, replays included, so that its undo file leads back to exactly that. Power failing
//      on the way: Rebuild/Changes, X1 to X3.
// (Q5) What was found and left is not forgotten: without -n, a filesystem that would count as clean is marked as damaged then. It is
//      checked, whatever the options, until nothing is found, and mounted read-only alone.
// (Q6) A repair and its undoing write only while nobody reads: a reader's pin holds its history, which a repair may give up (K3 in ImageLock).

import ArgumentParser
import Check
import Device
import Digest
import Format
import Glibc
import Rebuild
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
            -p repairs what can be repaired without losing anything, -y everything; what is lost is said. What a repair overwrites is saved \
            before, in IMAGE.undo-N, and --undo puts it back. Docs/FSCK.md lists all findings.

            Exit status: 0 no errors, 1 errors corrected (or journal replayed), 4 errors left, 8 operational error, 16 usage, 32 cancelled; \
            their sum for several.
            """)

    @Flag(name: .customShort("n"), help: "Change nothing at all; say what is wrong, and what a repair would do.")
    var changeNothing = false
    @Flag(name: [.customShort("p"), .customShort("a")], help: "Repair what can be repaired without loss, without asking.")
    var preen = false
    @Flag(name: .customShort("y"), help: "Repair all that can be repaired, without asking, also where something is lost.")
    var repairAll = false
    @Flag(name: .customShort("f"), help: "Check even if the filesystem was unmounted cleanly.")
    var force = false
    @Flag(name: .customLong("data"), help: "Read all file data as well and compare checksums (implies -f).")
    var verifyData = false
    @Flag(name: .customLong("rebuild"), help: "Make the tree from the oldest checkpoint and the journal alone, and compare (with -y: keep it).")
    var rebuild = false
    @Option(name: [.customShort("z"), .customLong("undo-file")], help: ArgumentHelp("Save there what a repair overwrites.", valueName: "file"))
    var undoFile: String?
    @Flag(name: .customLong("no-undo"), help: "Save nothing before a repair.")
    var noUndo = false
    @Option(name: .customLong("undo"), help: ArgumentHelp("Put back what a repair overwrote, from its undo file.", valueName: "file"))
    var undo: String?
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
        guard undoFile == nil || !noUndo else { throw UsageError("--undo-file and --no-undo exclude each other") }
        guard undo == nil || !(preen || repairAll || rebuild || verifyData || undoFile != nil || noUndo) else {
            throw UsageError("--undo goes with -n only")
        }
        if let progress, fcntl(progress, F_GETFD) < 0 { throw UsageError("-C\(progress): no such descriptor") }
        Cancellation.install()
        let session = try FsckSession(self, image)
        throw ExitCode(try session.run())
    }
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

    func show(_ phase: CheckPhase, _ part: Double) { show(phase.rawValue, phase.name, part) }

    /// Steps of a repair, numbered on from the phases of the check.
    private static let steps = ["look", "survey", "scan", "space", "replay", "mend", "check", "save", "write"]
    func show(step: String, _ part: Double) {
        show(CheckPhase.allCases.count + 1 + (Self.steps.firstIndex(of: step) ?? Self.steps.count), "repair: " + step, part)
    }

    private func show(_ number: Int, _ name: String, _ part: Double) {
        let percent = Int(max(0, min(1, part)) * 100)
        let line = isBar
            ? "\r\(image): \(rightPadded(name, 14)) \(leftPadded(String(percent), 3)) %"
            : "\(number) \(percent) 100 \(image)\n"
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

    /// File data: nothing else holds it.
    private static let beyondRepair: Set<FindingCode> = [.dataDamaged, .tailNotZero]

    /// Whether this version may write to the filesystem at all.
    private var mayWrite = true
    private var mayRepair: Bool { mayWrite && (command.preen || command.repairAll) }

    func run() throws(CommandError) -> Int32 {
        defer { withExtendedLifetime(lock) {} }
        if let undo = command.undo { return try putBack(undo) }
        let slots: SlotState
        do throws(CheckError) { slots = try SlotState(file) } catch {
            guard case .unusable(_, .slotsLost) = error, command.changeNothing || mayRepair else { throw refusal(error) }
            // What has taken the slots' place may be somebody's.
            if let kind = try Signatures.known(path) { throw CommandError("\(path): not a Daybook filesystem any more: contains \(kind)") }
            return try repairWithoutSlots(error)
        }
        if slots.newest.isClean && slots.findings.isEmpty && !command.force && !command.verifyData && !command.rebuild {
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
        var report: CheckReport

        // What is marked as damaged is not written to before a check has found it in order; and a repair begins with what was found (Q4).
        let inMemory = command.changeNothing || !mayWrite || mayRepair || open.contains(.markedDamaged)
        let target: any BlockDevice = inMemory ? OverlayDevice(file) : file
        if open.contains(.markedDamaged) { try unmark(slots, target) }
        if slots.needsReplay {
            if try replay(target, isTold: true) {
                if !inMemory {
                    status |= FsckStatus.corrected
                    // Recovery writes both slots.
                    open.remove(.slotDamaged)
                }
            } else {
                // The newest checkpoint can be checked even so.
                open.insert(.recoveryImpossible)
            }
        }
        report = try check(target)
        open.formUnion(report.counts.keys)
        if open.isSubset(of: Self.beyondRepair) && mayRepair && slots.needsReplay {
            _ = try replay(file, isTold: false)
            status |= FsckStatus.corrected
        }
        var differs = false
        if command.rebuild, let after = try compareRebuilt(target, &open, &differs) { report = after }
        if !open.isEmpty && (mayRepair || command.changeNothing && mayWrite), let after = try repair(&open) { report = after }
        // Which of the two is right, a check of one does not tell.
        if differs { open.insert(.superblockContradiction) }
        try remember(open)
        return verdict(report, open, differs: differs)
    }

    /// Takes the mark of damage from the slots.
    private func unmark(_ slots: SlotState, _ device: any BlockDevice) throws(CommandError) {
        do throws(DeviceError) { try Repair.mark(slots, device, isDamaged: false) } catch { throw CommandError(error.description) }
    }

    /// (Q5) Power failing on the way leaves one slot marked or none; a slot torn is made anew from the other.
    private func remember(_ open: Set<FindingCode>) throws(CommandError) {
        guard !command.changeNothing, mayWrite, !open.isSubset(of: Self.beyondRepair) else { return }
        guard let slots = try? SlotState(file), slots.newest.isClean, slots.newest.flags & Superblock.flagDamaged == 0 else { return }
        do throws(DeviceError) { try Repair.mark(slots, file, isDamaged: true) } catch { throw CommandError(error.description) }
        print("\(path): marked as damaged: it is mounted read-only alone until fsck finds nothing")
    }

    private func refusal(_ error: CheckError) -> CommandError {
        switch error {
        case .unusable(let text, let why):
            CommandError(text, status: why == .other ? FsckStatus.operationalError : FsckStatus.uncorrected)
        case .device(let error): CommandError(error.description)
        case .cancelled: CommandError("\(path): cancelled", status: status | FsckStatus.cancelled)
        }
    }

    // MARK: replaying

    /// Opens the filesystem as a mount would and closes it cleanly. False when that is impossible; then nothing was written.
    private func replay(_ device: any BlockDevice, isTold: Bool) throws(CommandError) -> Bool {
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
        if isTold, let result = volume.recovery { tell(result, device) }
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
        let place = command.changeNothing || !mayWrite ? ", in memory" : ""
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

    private func makeRepairer() -> Repairer {
        var options = CheckOptions()
        options.verifyData = command.verifyData
        return Repairer(
            file, options: options,
            environment: Repairer.Environment(
                clock: { .now }, random: { SystemRandomNumberGenerator.word() }, progress: { [bar] in bar?.show(step: $0, $1) },
                isCancelled: { Cancellation.isWanted }))
    }

    private func failure(_ error: RepairFailure) -> CommandError {
        if error.kind == .cancelled { return refusal(.cancelled) }
        return CommandError(error.kind == .undo ? error.description : "\(path): \(error)")
    }

    private func repairWithoutSlots(_ error: CheckError) throws(CommandError) -> Int32 {
        guard let found = try findRepair() else { throw refusal(error) }
        if case .unusable(let text, _) = error { print(text) }
        var open: Set<FindingCode> = [.slotDamaged]
        return verdict(try carryOut(found, &open), open)
    }

    private func findRepair() throws(CommandError) -> RepairOutcome? {
        let repairer = makeRepairer()
        defer { if command.verbose { for attempt in repairer.attempts { print("\(path): \(attempt)") } } }
        do throws(RepairFailure) {
            defer { bar?.end() }
            return try repairer.plan()
        } catch { throw failure(error) }
    }

    /// Nil when nothing was changed.
    private func repair(_ open: inout Set<FindingCode>) throws(CommandError) -> CheckReport? {
        // What nothing can bring back needs no plan.
        if open.isSubset(of: Self.beyondRepair) { return nil }
        let found = try findRepair()
        guard let found else {
            print("\(path): no way was found to put this right")
            return nil
        }
        return try carryOut(found, &open)
    }

    private func carryOut(_ outcome: RepairOutcome, _ open: inout Set<FindingCode>) throws(CommandError) -> CheckReport? {
        if command.changeNothing || command.preen && outcome.losesSomething {
            tell(outcome, isTrial: true)
            if command.preen { print("\(path): a repair loses something: fsck -y does it, and saves what it overwrites") }
            return nil
        }
        do throws(RepairFailure) {
            let changes = try Changes(outcome.overlay)
            if changes.count > 0 {
                guard lock.excludeReaders() else { throw Self.isRead }
                // A host without room for them says so before anything is written.
                do throws(RepairFailure) { try changes.provide(on: file) } catch {
                    throw RepairFailure(.undo, "\(error); nothing was repaired")
                }
                try save(changes, outcome.superblock.id)
            }
            tell(outcome, isTrial: false)
            // Whoever reads along learns what is lost, and where the way back is, also if this is the last that we do.
            fflush(nil)
            defer { bar?.end() }
            if changes.count > 0 {
                try changes.write(to: file) { [bar] in bar?.show(step: "write", $0) }
                status |= FsckStatus.corrected
            }
        } catch { throw failure(error) }
        open = Set(outcome.report.counts.keys)
        return outcome.report
    }

    private func tell(_ outcome: RepairOutcome, isTrial: Bool) {
        for line in outcome.lines {
            let place = line.path.map { " (\(shown($0)))" } ?? ""
            let word = line.isLoss ? (isTrial ? "would be lost" : "lost") : (isTrial ? "would be repaired" : "repaired")
            print("\(path): \(word): \(line.text)\(place)")
        }
    }

    /// (Q6)
    private static let isRead = RepairFailure(.device, "is being read (mounted read-only, or by a command); nothing was changed")

    // MARK: undoing

    /// Before the first write (X1 in Rebuild/Changes).
    private func save(_ changes: Changes, _ id: FilesystemID) throws(RepairFailure) {
        guard !command.noUndo else { return }
        let undo = command.undoFile ?? Self.undoPath(path, isBlockDevice: file.isBlockDevice)
        do throws(RepairFailure) { try UndoFile.save(changes, to: undo, id: id, time: .now) } catch {
            throw RepairFailure(.undo, "what a repair overwrites cannot be saved, and nothing was repaired: \(error) (see --undo-file, --no-undo)")
        }
        print("\(path): \(counted(UInt64(changes.count), "block")) saved to \(undo)")
    }

    /// Next to an image file; of a device, where the system keeps such things.
    private static func undoPath(_ path: String, isBlockDevice: Bool) -> String {
        var base = path
        if isBlockDevice {
            let directory = "/var/lib/daybook"
            if mkdir(directory, 0o755) == 0 { _ = ParentDirectory(of: directory).synchronize() }
            base = directory + "/" + path.split(separator: "/").joined(separator: "-")
        }
        var number = 1
        var status = stat()
        // Also a link that leads nowhere is in the way of a new file.
        while lstat("\(base).undo-\(number)", &status) == 0 { number += 1 }
        return "\(base).undo-\(number)"
    }

    private func putBack(_ undo: String) throws(CommandError) -> Int32 {
        do throws(RepairFailure) {
            let saved = try UndoFile(undo)
            if command.changeNothing {
                try saved.verify(file)
                print("\(path): \(counted(UInt64(saved.count), "block")) would be put back")
                return FsckStatus.clean
            }
            guard lock.excludeReaders() else { throw Self.isRead }
            let (restored, lost) = try saved.restore(to: file)
            let rest = lost > 0 ? "; \(counted(UInt64(lost), "block")) could not be read when they were to be saved" : ""
            print("\(path): \(counted(UInt64(restored), "block")) put back\(rest)")
            return FsckStatus.corrected
        } catch { throw failure(error) }
    }

    // MARK: the rebuild proof

    /// The tree made from the oldest checkpoint and the journal, beside the one that is there.
    private func compareRebuilt(
        _ target: any BlockDevice, _ open: inout Set<FindingCode>, _ differs: inout Bool
    ) throws(CommandError) -> CheckReport? {
        let repairer = makeRepairer()
        let outcome: RepairOutcome?
        do throws(RepairFailure) {
            defer { bar?.end() }
            outcome = try repairer.rebuild()
        } catch { throw failure(error) }
        guard let outcome else {
            print("\(path): the tree cannot be made from the journal alone" + (repairer.attempts.first.map { ": \($0)" } ?? ""))
            open.insert(.recoveryImpossible)
            return nil
        }
        let origin = outcome.superblock.horizon.value == 0 ? "mkfs" : "checkpoint \(outcome.superblock.horizon), the oldest retained,"
        let rebuilt: String
        do { rebuilt = try treeDigest(outcome.overlay) } catch { throw CommandError("\(path): \(error)") }
        print("\(path): tree made from \(origin) and the journal up to sequence \(outcome.superblock.checkpoint.sequence): \(rebuilt)")
        if let present = try? treeDigest(target) {
            print("\(path): tree of the newest checkpoint: \(present)")
            print("\(path): they are \(present == rebuilt ? "equal" : "different")")
            differs = present != rebuilt
        } else {
            print("\(path): the tree of the newest checkpoint cannot be read in full")
        }
        guard mayRepair && command.repairAll else { return nil }
        differs = false
        return try carryOut(outcome, &open)
    }

    private func treeDigest(_ device: any BlockDevice) throws -> String {
        let view = try Image(device).view(at: nil).view
        return SHA256.hexadecimal(try TreeDigest().digest(ViewSource(view, from: .root)))
    }

    // MARK: the verdict

    private func verdict(_ report: CheckReport?, _ open: Set<FindingCode>, differs: Bool = false) -> Int32 {
        if let report, command.verbose {
            print("\(path): \(counted(report.inodes, "inode")), \(report.directories) of them directories; \(counted(UInt64(report.checkpoints), "checkpoint"))")
            print("\(path): \(counted(report.records, "record")) in \(counted(report.frames, "frame")) of retained journal")
            print("\(path): blocks: \(report.superblock.blockCount) in all, \(report.usedBlocks) used: \(report.dataBlocks) data, \(report.historyBlocks) history")
        }
        guard open.isEmpty else {
            status |= FsckStatus.uncorrected
            if open.isSubset(of: Self.beyondRepair) {
                print("\(path): what is damaged of file data cannot be brought back; reading it is an error, and all else is in order")
            } else if differs {
                print("\(path): fsck -y --rebuild keeps the tree that the journal makes")
            } else if command.changeNothing || mayRepair {
                print("\(path): errors were found and left as they are")
            } else {
                print("\(path): errors were found; fsck -n says what a repair would do, -p and -y do it")
            }
            return status
        }
        if let report {
            // A last frame that rotted cannot be told from one that the power failed in: so it is said how far the journal goes.
            if status & FsckStatus.corrected != 0 {
                print("\(path): the journal ends after sequence \(report.superblock.checkpoint.sequence)")
            }
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
