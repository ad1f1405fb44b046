// Goal: on a full disk write(2) refuses, not fsync(2) or close(2), whatever the mount options; what was accepted is there afterwards.
// Method: writers fill a mounted image until they are refused; then everything accepted is looked for after a remount.
// Skipped where nothing can be mounted.

import Device
import Glibc
import Memory
import Synchronization
import Testing

/// Blocks that one writer was granted, and what ended it.
private struct Outcome: Sendable {
    var accepted = 0
    var refusal: Int32 = 0
    /// Of fsync and close.
    var late: Int32 = 0
}

private func pattern(_ writer: Int, _ number: Int, _ size: Int) -> [UInt8] {
    var block = [UInt8](repeating: UInt8(truncatingIfNeeded: number &* 31 &+ writer &* 97 &+ 1), count: size)
    withUnsafeBytes(of: number) { block.replaceSubrange(0..<8, with: $0) }
    return block
}

@Suite(.enabled(if: canMount, "not root, or no /dev/fuse"), .serialized, .timeLimit(.minutes(5)))
struct FullDisks {
    private static func fill(_ path: String, writer: Int, size: Int) -> Outcome {
        var outcome = Outcome()
        let descriptor = open(path, (writer % 2 == 0 ? O_WRONLY : O_RDWR) | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        // More than the filesystem has is never right.
        while outcome.accepted * size < 256 << 20 {
            let block = pattern(writer, outcome.accepted, size)
            let written = write(descriptor, block, size)
            guard written == size else {
                outcome.refusal = written < 0 ? errno : -1
                break
            }
            outcome.accepted += 1
        }
        if fsync(descriptor) != 0 { outcome.late = errno }
        if close(descriptor) != 0 { outcome.late = errno }
        return outcome
    }

    @Test(arguments: [("rw", 4096), ("rw", 1 << 20), ("writeback", 65_536), ("sync", 65_536)])
    func onAFullDiskTheWriteItselfIsRefused(options: String, size: Int) throws {
        let mounted = try Mounted(options: options)
        let directory = mounted.directory
        let outcomes = Mutex([Outcome](repeating: Outcome(), count: 3))
        let threads = (0..<3).map { writer in
            Thread(name: "writer") {
                let outcome = Self.fill("\(directory)/\(writer)", writer: writer, size: size)
                outcomes.withLock { $0[writer] = outcome }
            }
        }
        for thread in threads { thread.join() }
        let found = outcomes.withLock { $0 }
        #expect(found.allSatisfy { $0.refusal == ENOSPC && $0.late == 0 }, "\(found)")
        #expect(found.reduce(0) { $0 + $1.accepted } * size > 60 << 20, "\(found)")

        mounted.unmount()
        try mounted.mount("rw")
        for writer in 0..<3 {
            let contents = try #require(ProcessFiles.contents("\(mounted.directory)/\(writer)"))
            try #require(contents.count >= found[writer].accepted * size)
            var wrong = 0
            contents.withUnsafeBytes { bytes in
                for number in 0..<found[writer].accepted
                where memcmp(bytes.baseAddress! + number * size, pattern(writer, number, size), size) != 0 { wrong += 1 }
            }
            #expect(wrong == 0, "blocks of writer \(writer) that are not as accepted, of \(found[writer].accepted)")
        }
        mounted.unmount()
        let check = daybook("fsck", "-n", "-f", mounted.image)
        #expect(check.status == 0, "\(check.output)\(check.errors)")
    }
}
