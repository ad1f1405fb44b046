// daybook log: every retained record, one line each. Offline or beside a mounted filesystem, which it does not disturb: it
// only holds the horizon back while it reads.

import ArgumentParser
import Format
import Glibc
import Memory
import Volume

struct LogCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "log", abstract: "Show what was changed, when, and by whom.",
        discussion: """
            Columns: sequence, time, user ID, process ID, operation, path and what else the record says.
            With PATH: only records that concern it or anything below it, under the names it had at the time; what is there
            at the end of the range is followed back through renames.
            POINT is \(pointSyntax).
            """)

    @Argument(help: ArgumentHelp("Image file, block device, or something in a mounted filesystem.", valueName: "image|device|dir"))
    var image: String
    @Argument(help: "Path within the filesystem.")
    var path: String?
    @Option(help: ArgumentHelp("First record, or earliest time.", valueName: "point"))
    var since: String?
    @Option(help: ArgumentHelp("Last record, or latest time.", valueName: "point"))
    var until: String?
    @Option(help: ArgumentHelp("Stop after this many records.", valueName: "count"))
    var limit: Int?
    @Flag(help: "Newest first.")
    var reverse = false
    @Flag(help: "One JSON object a line.")
    var json = false

    func run() throws {
        let range = LogRange(
            since: try since.map { try parsePoint($0, for: "--since") }, until: try until.map { try parsePoint($0, for: "--until") })
        guard limit ?? 1 > 0 else { throw UsageError("--limit \(limit!): must be at least 1") }
        let source = try ImageSource(image)
        let losses = try source.pinnedFromHorizon { (image, checkpoints, loss) -> Result<Int, CommandError> in
            // From here on everything is pinned: what fails now is told, not tried again.
            do throws(CommandError) { return .success(try show(source, image, checkpoints, loss, range)) } catch {
                return .failure(error)
            }
        }
        if try losses.get() > 0 { throw ExitCode(1) }
    }

    /// Returns how many things were missing.
    private func show(
        _ source: ImageSource, _ image: Image, _ checkpoints: [CheckpointItem], _ loss: String?, _ range: LogRange
    ) throws(CommandError) -> Int {
        let output = Output()
        var losses = 0
        func lose(_ text: String) {
            try? output.flush()
            printError("daybook log: \(source.path): \(text)")
            losses += 1
        }
        if let loss { lose("older records cannot be found: \(loss)") }

        // Where the journal is damaged, walking it will tell.
        let tail = try? source.reading { (_) throws(OpenError) in try image.tail() }
        var last = tail?.last ?? .unknown
        if case .sequence(let until) = range.until { last = min(last, until) }
        let filter = try PathFilter(wanted(source), image, at: last)
        let walk = JournalWalk(image, checkpoints)
        walk.onLoss = lose

        let width = String((tail?.last ?? image.superblock.checkpoint.sequence).value).count
        let lines = LogLines(output, limit: limit, reversed: reverse)
        func take(_ step: JournalWalk.Step) throws(CommandError) -> Bool {
            guard !range.isPast(step) else { return false }
            guard range.contains(step.record.header) else { return true }
            let description = RecordDescription(step.record, step.view)
            guard filter.accepts(description, step.view) else { return true }
            return try lines.add(json ? description.json : description.line(sequenceWidth: width))
        }
        let first = range.firstInterval(walk)
        if reverse {
            var interval = range.lastInterval(walk, checkpoints)
            while interval >= first, !lines.isFull {
                try walk.run(from: interval, through: walk.last(interval, last), take)
                try lines.emitReversed()
                interval -= 1
            }
        } else {
            try walk.run(from: first, through: last, take)
        }
        try output.flush()
        if range.until == nil, let tail, tail.isTorn, !source.isLive {
            printError("daybook log: \(source.path): the journal ends after sequence \(tail.last): \(tail.end)")
        }
        return losses
    }

    private func wanted(_ source: ImageSource) -> [UInt8] { joined(source.inside, path.map(argumentBytes) ?? []) }
}

/// Which records are wanted. Sequences and times are inclusive; times are those of the records.
struct LogRange {
    let since: Point?
    let until: Point?

    func contains(_ header: RecordHeader) -> Bool {
        switch since {
        case .sequence(let first)? where header.sequence < first: return false
        case .time(let first)? where header.time < first: return false
        default: break
        }
        switch until {
        case .sequence(let last)?: return header.sequence <= last
        case .time(let last)?: return header.time <= last
        case nil: return true
        }
    }

    /// No wanted record follows. Commit times never decrease, while those of records may when a clock is set back.
    func isPast(_ step: JournalWalk.Step) -> Bool {
        guard case .time(let last)? = until else { return false }
        return step.frame.time > last && step.record.header.time > last
    }

    func firstInterval(_ walk: JournalWalk) -> Int {
        switch since {
        case .sequence(let first)?: walk.interval(of: first)
        case .time(let first)?: walk.interval(of: first)
        case nil: 0
        }
    }

    func lastInterval(_ walk: JournalWalk, _ checkpoints: [CheckpointItem]) -> Int {
        switch until {
        case .sequence(let last)?: walk.interval(of: last)
        // A record made in time may have been committed later, in the interval that follows.
        case .time(let last)?: min((checkpoints.lastIndex { $0.time <= last } ?? -1) + 1, walk.intervals - 1)
        case nil: walk.intervals - 1
        }
    }
}

/// Which records concern a path: by its text at their time, and by the file that has it at the end of the range.
struct PathFilter {
    private let path: [UInt8]
    private var identity: InodeNumber?
    private var isDirectory = false
    private var acceptsAll: Bool { path.count == 1 }

    init(_ path: [UInt8], _ image: Image, at last: SequenceNumber) throws(CommandError) {
        self.path = path
        guard !acceptsAll else { return }
        // Without that view (a damaged image) names have to do.
        let point = last == .unknown ? nil : Point.sequence(last)
        guard let view = try? image.view(at: point).view, let found = try? view.resolve(path) else { return }
        identity = found.inode
        isDirectory = found.item.isDirectory
    }

    func accepts(_ description: RecordDescription, _ view: View?) -> Bool {
        if acceptsAll || isWithin(description.path) { return true }
        // A symlink's target is no path of this filesystem.
        if description.header.type != .symlink && isWithin(description.target) { return true }
        guard let identity else { return false }
        if description.concerned.contains(identity) { return true }
        guard isDirectory, let view else { return false }
        return (description.directories + description.concerned).contains { view.isBelow($0, identity) }
    }

    private func isWithin(_ other: [UInt8]?) -> Bool {
        guard let other, other.starts(with: path) else { return false }
        return other.count == path.count || other[path.count] == UInt8(ascii: "/")
    }
}

extension View {
    /// The file that an absolute path leads to; symbolic links are not followed.
    func resolve(_ path: [UInt8]) throws(ViewError) -> Attributes {
        var at = try attributes(.root)
        for name in path.split(separator: UInt8(ascii: "/")) {
            at = try Array(name).withRawBytes { (bytes) throws(ViewError) in try lookup(at.inode, bytes) }
        }
        return at
    }

    /// Whether the way up from `inode` leads through `ancestor`.
    func isBelow(_ inode: InodeNumber, _ ancestor: InodeNumber) -> Bool {
        var at = inode
        for _ in 0..<4096 {
            if at == ancestor { return true }
            guard at != .root, let item = (try? item(at)) ?? nil, item.parent != .none else { return false }
            at = item.parent
        }
        return false
    }
}

/// Lines on their way out: at once, or, newest first, when their interval is done. An interval's lines are kept in memory as long as
/// they are few, then in a file without a name.
private final class LogLines {
    private static let inMemory = 16 << 20

    private let output: Output
    private let isReversed: Bool
    private var remaining: Int
    private var held: [String] = []
    private var heldBytes = 0
    private var file: UnsafeMutablePointer<FILE>?
    /// Where each line in the file begins, and where the last ends.
    private var starts: [Int] = [0]

    init(_ output: Output, limit: Int?, reversed: Bool) {
        self.output = output
        remaining = limit ?? .max
        isReversed = reversed
    }
    deinit { if let file { fclose(file) } }

    var isFull: Bool { remaining == 0 }

    /// Returns false when no more are wanted.
    func add(_ line: String) throws(CommandError) -> Bool {
        guard isReversed else {
            try output.line(line)
            remaining -= 1
            return remaining > 0
        }
        held.append(line)
        heldBytes += line.utf8.count
        if held.count > remaining, held.count - remaining > held.count / 2 {
            heldBytes -= held.prefix(held.count - remaining).reduce(0) { $0 + $1.utf8.count }
            held.removeFirst(held.count - remaining)
        }
        if heldBytes > Self.inMemory { try spill() }
        return true
    }

    private func spill() throws(CommandError) {
        if file == nil { file = tmpfile() }
        guard let file else { throw .system("cannot make a temporary file") }
        for line in held {
            guard fputs(line, file) >= 0 else { throw .system("cannot write a temporary file") }
            starts.append(starts.last! + line.utf8.count)
        }
        held.removeAll(keepingCapacity: true)
        heldBytes = 0
    }

    func emitReversed() throws(CommandError) {
        for line in held.reversed() where remaining > 0 {
            try output.line(line)
            remaining -= 1
        }
        held.removeAll()
        heldBytes = 0
        guard let file else { return }
        guard fflush(file) == 0 else { throw .system("cannot write a temporary file") }
        while starts.count > 1, remaining > 0 {
            let end = starts.removeLast()
            var bytes = [UInt8](repeating: 0, count: end - starts.last!)
            guard pread(fileno(file), &bytes, bytes.count, off_t(starts.last!)) == bytes.count else {
                throw .system("cannot read a temporary file")
            }
            try output.line(String(decoding: bytes, as: UTF8.self))
            remaining -= 1
        }
        starts = [0]
        rewind(file)
        ftruncate(fileno(file), 0)
    }
}
