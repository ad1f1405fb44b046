// daybook show: one record in full: what it did, where its data lies and whether that is still what it was, and the frame
// that made it durable.

import ArgumentParser
import Device
import Format
import Journal
import Memory
import Volume

struct ShowCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show", abstract: "Show one record in full, with its frame, blocks and checksums.",
        discussion: "The two arguments may stand in either order; without an image, that of the current directory is taken.")

    @Argument(help: ArgumentHelp("Image file, block device or mounted directory, and the record's sequence number.",
        valueName: "image|device|dir sequence"))
    var arguments: [String]
    @Flag(help: "Also show the bytes that the record itself holds.")
    var data = false

    private func parsed() throws(UsageError) -> (image: String, sequence: SequenceNumber) {
        func sequence(_ text: String) -> SequenceNumber? {
            text.allSatisfy { $0.isASCII && $0.isNumber } ? UInt64(text).map(SequenceNumber.init) : nil
        }
        switch arguments.count {
        case 1:
            if let number = sequence(arguments[0]) { return (".", number) }
        case 2:
            if let number = sequence(arguments[1]) { return (arguments[0], number) }
            if let number = sequence(arguments[0]) { return (arguments[1], number) }
        default: break
        }
        throw UsageError("expects an image, a device or a directory, and one sequence number")
    }

    func run() throws {
        let (argument, sequence) = try parsed()
        let source = try ImageSource(argument)
        guard sequence.value > 0 else { throw CommandError("the first record has sequence 1") }
        let result = try source.pinnedFromHorizon { (image, checkpoints, _) throws(OpenError) -> Result<Bool, CommandError> in
            // Before the record is looked for, so that a live journal's last frame is known to be whole.
            let tail = try? image.tail()
            do throws(CommandError) { return .success(try show(source, image, checkpoints, tail, sequence)) } catch {
                return .failure(error)
            }
        }
        if try !result.get() { throw ExitCode(1) }
    }

    /// Returns false when something is not as the record says.
    private func show(
        _ source: ImageSource, _ image: Image, _ checkpoints: [CheckpointItem], _ tail: JournalTail?, _ sequence: SequenceNumber
    ) throws(CommandError) -> Bool {
        guard sequence > checkpoints[0].sequence else {
            throw CommandError("\(source.path): record \(sequence) is no longer retained; the oldest is \(checkpoints[0].sequence.next)")
        }
        if let tail, sequence > tail.last {
            throw CommandError("\(source.path): there is no record \(sequence) yet; the last is \(tail.last)")
        }
        let walk = JournalWalk(image, checkpoints)
        var losses: [String] = []
        walk.onLoss = { losses.append($0) }
        let output = Output()
        var found: Bool?
        try walk.run(from: walk.interval(of: sequence), through: sequence) { (step) throws(CommandError) in
            guard step.record.sequence == sequence else { return true }
            found = try RecordPage(image, step, data: data, output).write()
            return false
        }
        try output.flush()
        guard let found else { throw CommandError("\(source.path): " + (losses.last ?? "record \(sequence) was not found")) }
        for loss in losses { printError("daybook show: \(source.path): \(loss)") }
        return found
    }
}

/// The page that `show` prints.
private struct RecordPage {
    let image: Image
    let step: JournalWalk.Step
    let data: Bool
    let output: Output
    let description: RecordDescription

    init(_ image: Image, _ step: JournalWalk.Step, data: Bool, _ output: Output) {
        self.image = image
        self.step = step
        self.data = data
        self.output = output
        description = RecordDescription(step.record, step.view)
    }

    private func field(_ name: String, _ value: String) throws(CommandError) {
        try output.line("  " + rightPadded(name, 16) + value)
    }

    func write() throws(CommandError) -> Bool {
        let header = step.record.header
        try output.line("record \(header.sequence)")
        try field("operation", header.type.name)
        try field("time", "\(header.time.local)  (\(header.time.rfc3339))")
        try field("by", "user \(header.uid), group \(header.gid), process \(header.pid)")
        if let path = description.path { try field("path", shown(path)) }
        if let target = description.target { try field(header.type == .symlink ? "points to" : "new path", shown(target)) }
        if let inode = description.inode { try field("inode", "\(inode)") }
        if let entry = description.entry { try field("entry", "\(shown(entry.name)) in directory \(entry.parent)") }
        for detail in description.details { try writeDetail(detail.name, detail.value) }
        if header.flags & RecordHeader.flagTrim != 0 { try field("flags", "trim: what lies beyond the end is left to be reclaimed") }
        try field("record size", "\(step.record.bytes.count) bytes")
        let isRight = try writeSegments()
        try writeData()
        return try writeFrame() && isRight
    }

    private func writeDetail(_ name: String, _ value: RecordDescription.Value) throws(CommandError) {
        guard case .list(let items) = value else {
            return try field(name.replacing("_", with: " "), RecordDescription.text(value) ?? "")
        }
        for item in items {
            let parts = item.map { $0.name.replacing("_", with: " ") + " " + (RecordDescription.text($0.value) ?? "") }
            try field(name, parts.joined(separator: ", "))
        }
    }

    // MARK: segments

    private func writeSegments() throws(CommandError) -> Bool {
        guard let content = ContentPayload(of: step.record), content.segments > 0 else { return true }
        var isRight = true
        try output.line("segments")
        for (index, segment) in content.allSegments.enumerated() {
            let last = segment.fileBlock + segment.blocks - 1
            let place = segment.blocks == 1 ? "file block \(segment.fileBlock)" : "file blocks \(segment.fileBlock) to \(last)"
            let homes = segment.blocks == 1 ? "\(segment.home)" : "blocks \(segment.home.value) to \((segment.home + (segment.blocks - 1)).value)"
            let start = leftPadded(String(index), 4) + "  " + rightPadded("\(segment.kind)", 9) + "  " + place
            switch segment.kind {
            case .hole: try output.line(start)
            case .unwritten: try output.line("\(start) at \(homes)")
            case .patch:
                try output.line("\(start) at \(homes): \(segment.data.count) bytes from byte \(segment.offset) of the block")
                try output.line("        \(segment.home)  \(hex(segment.patchedCRC))  \(patchState(segment))")
            case .run, .shared:
                try output.line("\(start) at \(homes)" + (segment.kind == .shared ? ", born at \(segment.birth)" : ""))
                isRight = try writeRun(segment) && isRight
            }
        }
        return isRight
    }

    private func writeRun(_ segment: Segment) throws(CommandError) -> Bool {
        var lines: [String] = []
        var isRight = true
        do throws(JournalError) {
            try image.verify(segment) { block, matches in
                let crc = segment.data.u32(at: Int(block.value - segment.home.value) * 4)
                lines.append("        \(block)  \(hex(crc))  \(matches ? "verified" : "DIFFERS")")
                if !matches { isRight = false }
            }
        } catch {
            lines.append("        \(error.description)")
            isRight = false
        }
        for line in lines { try output.line(line) }
        return isRight
    }

    /// A patch's block gets home with a later checkpoint, and only if no later patch came before that.
    private func patchState(_ segment: Segment) -> String {
        let buffer = AlignedBuffer(count: blockSize)
        guard segment.home.value < image.superblock.blockCount,
            (try? image.device.read(segment.home, into: buffer.bytes)) != nil
        else { return "cannot be read" }
        if buffer.bytes.crc32c() == segment.patchedCRC { return "verified" }
        return step.record.sequence > image.superblock.checkpoint.sequence ? "not posted yet" : "patched again before it was posted"
    }

    // MARK: bytes in the record

    private func writeData() throws(CommandError) {
        guard data else { return }
        func dump(_ title: String, _ bytes: RawBytes, from offset: Int = 0) throws(CommandError) {
            guard bytes.count > 0 else { return }
            try output.line(title)
            try output.write(hexDump(bytes.array, indent: "  ", from: offset))
        }
        let payload = step.record.payload
        switch step.record.type {
        case .write, .truncate, .fallocate:
            for segment in ContentPayload(payload)?.allSegments ?? [] where segment.kind == .patch {
                try dump("data for \(segment.home), from byte \(segment.offset)", segment.data, from: segment.offset)
            }
        case .symlink: if let make = MakePayload(payload) { try dump("target", make.target) }
        case .setxattr: if let xattr = XattrPayload(payload) { try dump("value", xattr.value) }
        default: break
        }
    }

    // MARK: the frame

    private func writeFrame() throws(CommandError) -> Bool {
        let frame = step.frame
        let blocks = FrameHeader.blocks(payload: Int(frame.payload))
        let buffer = AlignedBuffer(count: blocks << blockShift)
        do throws(DeviceError) { try image.device.read(frame.address, into: buffer.bytes) } catch {
            throw CommandError(error.description)
        }
        let bytes = buffer.bytes
        let computed = bytes.crc32c(skipping: 4)
        let stored = bytes.u32(at: 4)
        try output.line("frame")
        try field("address", "\(frame.address), \(blocks == 1 ? "1 block" : "\(blocks) blocks")")
        try field("chunk", "\(frame.position.serial), from \(frame.position.chunk) on; block \(frame.position.block) of it")
        try field("records", "\(frame.first) to \(frame.last), \(frame.payload) bytes")
        try field("committed", "\(frame.time.local)  (\(frame.time.rfc3339))")
        try field("epoch", "\(frame.position.epoch)")
        if frame.flags & FrameHeader.flagDataFlushed != 0 { try field("flags", "its data was flushed before it") }
        try field("checksum", "\(hex(stored))  \(computed == stored ? "verified" : "DIFFERS: \(hex(computed))")")
        try field("chain", "\(hex(frame.position.chain)) before, \(hex(FrameHeader.chain(bytes))) after")
        return computed == stored
    }
}
