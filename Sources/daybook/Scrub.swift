// daybook scrub: reads all that the present and the retained past need and compares checksums, beside a running mount if need be.

import ArgumentParser
import Check
import Device
import Format
import Glibc
import Volume

/// Exit status.
enum ScrubStatus {
    /// Something could not be done, or not be finished.
    static let failure: Int32 = 1
    /// Damage was found: as fsck(8) has it for errors that are left.
    static let damaged: Int32 = 4
}

struct ScrubCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "scrub", abstract: "Verify every checksum of present and past data.",
        discussion: """
            Nothing is written, and a mounted filesystem goes on working: it is read at a limited rate. Structure is not looked at; that is \
            what fsck is for.

            Exit status: 0 everything is as it should be, 4 damage was found, 1 it could not be done or finished, 2 usage.
            """)

    /// Bytes a second from an image that is in use, unless said otherwise.
    private static let gentleRate: Double = 64

    @Argument(help: ArgumentHelp("Image file, block device or mounted directory.", valueName: "image|device|dir"))
    var image: String
    @Option(help: ArgumentHelp("Read at most so much a second; 0: no limit. Default: 64 when it is mounted, else 0.", valueName: "MiB"))
    var rate: Double?
    @Flag(help: "Show progress, a line for each per cent, also where there is no terminal.")
    var progress = false
    @Flag(help: "One JSON object.")
    var json = false

    func run() throws {
        if let rate { guard rate >= 0, rate < 1e9 else { throw UsageError("--rate \(rate): MiB a second, or 0") } }
        let source = try ImageSource(image)
        let mebibytes = rate ?? (source.isLive ? Self.gentleRate : 0)
        // What is above zero is a limit, however small.
        let device = ThrottledDevice(source.device, rate: mebibytes > 0 ? max(UInt64(mebibytes * 1_048_576), 4096) : 0)
        Cancellation.install()
        let session = ScrubSession(source, device, json: json, showsProgress: progress)
        throw ExitCode(try session.run())
    }
}

private final class ScrubSession {
    private let source: ImageSource
    private let device: ThrottledDevice
    private let json: Bool
    private let output = Output()
    private let meter: ScrubMeter
    private var damages: [JSONObject] = []
    /// More are counted, not listed, in JSON.
    private static let limit = 10_000
    private var found: UInt64 = 0
    private var failure: CommandError?

    init(_ source: ImageSource, _ device: ThrottledDevice, json: Bool, showsProgress: Bool) {
        self.source = source
        self.device = device
        self.json = json
        meter = ScrubMeter(source.path, isForced: showsProgress)
    }

    func run() throws(CommandError) -> Int32 {
        let began = Self.seconds()
        let report: ScrubReport
        do throws(CheckError) {
            let scrubber = try Scrubber(
                device, hasWriter: { [source] in source.isLive }, commit: { [source] in source.commit() },
                onDamage: { [unowned self] in tell($0) },
                progress: { [unowned self] in meter.show($0, 0, force: true) },
                isCancelled: { [unowned self] in
                    meter.tick(device.bytesRead)
                    return failure != nil || Cancellation.isWanted
                })
            meter.expected = max(scrubber.expectedBytes, 1)
            report = try scrubber.run()
        } catch {
            meter.end()
            switch error {
            case .unusable(let text, let why): throw CommandError(text, status: why == .other ? ScrubStatus.failure : ScrubStatus.damaged)
            case .device(let error): throw CommandError(error.description)
            case .cancelled:
                if let failure { throw failure }
                return try cancelled()
            }
        }
        meter.end()
        if let failure { throw failure }
        if json {
            try output.line(object(report))
        } else {
            let read = "\(counted(report.dataBlocks, "data block")), \(counted(report.nodes, "node")), \(counted(report.frames, "frame")) of journal"
            let time = String(Int((Self.seconds() - began).rounded(.up)))
            try output.line(
                "\(shown(Array(source.path.utf8))): "
                    + (report.damages == 0 ? "no damage" : counted(report.damages, "damage")) + "; \(read), sequences "
                    + "\(report.superblock.horizon) to \(report.superblock.checkpoint.sequence) and what follows, verified in \(time) s")
        }
        try output.flush()
        if let reason = report.unfinished { printError("daybook scrub: \(source.path): not all could be verified: \(reason)") }
        if report.damages > 0 { return ScrubStatus.damaged }
        return report.unfinished == nil ? 0 : ScrubStatus.failure
    }

    /// What was found until then.
    private func cancelled() throws(CommandError) -> Int32 {
        if json {
            var object = JSONObject()
            object.add("image", bytes: Array(source.path.utf8))
            object.add("bytes_read", device.bytesRead)
            object.add("finished", false)
            object.add("damages", found)
            object.add("damage", damages)
            try output.line(object.closed)
        } else {
            try output.line("\(shown(Array(source.path.utf8))): \(found == 0 ? "no damage" : counted(found, "damage")) until it was cancelled")
        }
        try output.flush()
        return found > 0 ? ScrubStatus.damaged : ScrubStatus.failure
    }

    private static func seconds() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    // MARK: damage

    private func tell(_ damage: Damage) {
        found += 1
        if json {
            if damages.count < Self.limit { damages.append(object(damage)) }
            return
        }
        meter.clear()
        do throws(CommandError) {
            try output.line("\(shown(Array(source.path.utf8))): \(text(damage))")
            // As it is found: the rest may take hours.
            try output.flush()
        } catch { failure = failure ?? error }
    }

    private func text(_ damage: Damage) -> String {
        let what = switch damage.kind {
        case .superblock: "superblock damaged"
        case .space: "space state damaged"
        case .journal: "journal damaged"
        case .node: "tree damaged"
        case .data: "data damaged"
        }
        var place: [String] = []
        if let path = damage.path { place.append(shown(path)) }
        if let offset = damage.offset { place.append("offset \(offset)" + (damage.length > UInt64(blockSize) ? " to \(offset + damage.length)" : "")) }
        if let inode = damage.inode { place.append(damage.kind == .node ? "inode \(inode) and neighbours" : "inode \(inode)") }
        if let block = damage.block { place.append("\(block)") }
        return "\(what): \(place.joined(separator: ", ")): \(damage.text)" + (damage.hasPoints ? "; " + points(damage) : "")
    }

    private func points(_ damage: Damage) -> String {
        func named(_ sequence: SequenceNumber, _ time: Timestamp?) -> String { "\(sequence)" + (time.map { " (\($0.local))" } ?? "") }
        if damage.kind == .journal {
            let from = "records from \(damage.first.map { named($0, nil) } ?? "the horizon")" + (damage.firstTime.map { " (after \($0.local))" } ?? "")
            return from + (damage.last.map { " to \(named($0, damage.lastTime))" } ?? " on")
        }
        let first = damage.first.map { named($0, damage.firstTime) }
        switch (first, damage.last) {
        case (nil, nil): return "needed now and at every retained point"
        case (let first?, nil): return "needed now and at every point from sequence \(first) on"
        case (let first, let last?): return "needed at the points from \(first.map { "sequence \($0)" } ?? "the horizon") to sequence \(named(last, damage.lastTime))"
        }
    }

    // MARK: JSON

    private func object(_ damage: Damage) -> JSONObject {
        var object = JSONObject()
        object.add("kind", damage.kind.rawValue)
        if let block = damage.block { object.add("block", block.value) }
        if let inode = damage.inode { object.add("inode", inode.value) }
        if let path = damage.path { object.add("path", bytes: path) }
        if let offset = damage.offset {
            object.add("offset", offset)
            object.add("length", damage.length)
        }
        if damage.hasPoints {
            if let first = damage.first { object.add("first_sequence", first.value) }
            if let time = damage.firstTime { object.add("first_time", time.rfc3339) }
            if let last = damage.last { object.add("last_sequence", last.value) }
            if let time = damage.lastTime { object.add("last_time", time.rfc3339) }
            object.add("present", damage.last == nil)
        }
        object.add("reason", damage.text)
        return object
    }

    private func object(_ report: ScrubReport) -> String {
        var object = JSONObject()
        object.add("image", bytes: Array(source.path.utf8))
        object.add("uuid", "\(report.superblock.id)")
        object.add("data_blocks", report.dataBlocks)
        object.add("nodes", report.nodes)
        object.add("frames", report.frames)
        object.add("checkpoints", UInt64(report.checkpoints))
        object.add("bytes_read", device.bytesRead)
        object.add("finished", report.unfinished == nil)
        object.add("damages", report.damages)
        object.add("damage", damages)
        return object.closed
    }
}

/// How far it is: a bar on a terminal, lines elsewhere when asked for.
private final class ScrubMeter {
    private let path: String
    private let isBar: Bool
    private let isShown: Bool
    var expected: UInt64 = 1
    private var phase = ScrubPhase.space
    private var last = ""

    init(_ path: String, isForced: Bool) {
        self.path = path
        isBar = isatty(2) == 1
        isShown = isBar || isForced
    }

    func tick(_ bytes: UInt64) { show(phase, bytes, force: false) }

    func show(_ phase: ScrubPhase, _ bytes: UInt64, force: Bool) {
        guard isShown else { return }
        self.phase = phase
        if force && bytes == 0 { return }
        let percent = min(bytes / max(expected / 100, 1), 99)
        let line = isBar ? "\r\(path): \(rightPadded(phase.rawValue, 8)) \(leftPadded("\(percent)", 3)) %" : "\(phase.rawValue) \(percent) 100 \(path)\n"
        if line != last { put(line) }
        last = line
    }

    /// Makes room for a line of output.
    func clear() {
        guard isBar, !last.isEmpty else { return }
        put("\r" + String(repeating: " ", count: last.count) + "\r")
        last = ""
    }

    func end() {
        clear()
        if isShown && !isBar { put("done 100 100 \(path)\n") }
    }

    private func put(_ text: String) {
        var text = text
        text.withUTF8 { _ = write(2, $0.baseAddress!, $0.count) }
    }
}
