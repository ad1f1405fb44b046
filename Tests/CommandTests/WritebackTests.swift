// Goal: what the kernel's writeback cache accepts is there afterwards; on a full disk write(2) refuses, not fsync(2) or close(2).
// Method: writers fill a mounted image until they are refused, some of them writing to another filesystem in turns, which the kernel's
// limit of dirty memory for one mount does not see; then everything accepted is looked for after a remount.
// Skipped where nothing can be mounted.

import CTestSupport
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
struct WritebackCaches {
    private func isSynchronous(_ mounted: Mounted) -> Bool {
        MountedFilesystem.at(mounted.directory)?.filesystemFlags.contains("sync") ?? false
    }

    /// Whether the flag becomes `expected` within a while.
    private func becomes(_ mounted: Mounted, synchronous expected: Bool) -> Bool {
        for _ in 0..<150 {
            if isSynchronous(mounted) == expected { return true }
            usleep(100_000)
        }
        return false
    }

    private static func fill(_ path: String, writer: Int, size: Int, inTurnsWith other: String?) -> Outcome {
        var outcome = Outcome()
        let descriptor = open(path, (writer % 2 == 0 ? O_WRONLY : O_RDWR) | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        let second = other.map { open($0, O_WRONLY | O_CREAT | O_CLOEXEC, 0o644) } ?? -1
        // More than the filesystem has is never right.
        while outcome.accepted * size < 256 << 20 {
            let block = pattern(writer, outcome.accepted, size)
            let written = write(descriptor, block, size)
            guard written == size else {
                outcome.refusal = written < 0 ? errno : -1
                break
            }
            outcome.accepted += 1
            if second >= 0 { _ = pwrite(second, block, size, outcome.accepted % 512 * size) }
        }
        if fsync(descriptor) != 0 { outcome.late = errno }
        if close(descriptor) != 0 { outcome.late = errno }
        if second >= 0 { close(second) }
        return outcome
    }

    @Test(arguments: [("rw", 65_536), ("writeback=16M", 16_384), ("writeback=16M", 1 << 20)])
    func onAFullDiskTheWriteItselfIsRefused(options: String, size: Int) throws {
        let mounted = try Mounted(options: options)
        let others = (0..<3).map { _ in temporaryPath("other") }
        defer { for other in others { unlink(other) } }
        #expect(!isSynchronous(mounted))
        let directory = mounted.directory
        let outcomes = Mutex([Outcome](repeating: Outcome(), count: 3))
        let threads = (0..<3).map { writer in
            Thread(name: "writer") {
                let outcome = Self.fill(
                    "\(directory)/\(writer)", writer: writer, size: size, inTurnsWith: writer == 2 ? others[writer] : nil)
                outcomes.withLock { $0[writer] = outcome }
            }
        }
        for thread in threads { thread.join() }
        let found = outcomes.withLock { $0 }
        #expect(found.allSatisfy { $0.refusal == ENOSPC && $0.late == 0 }, "\(found)")
        #expect(found.reduce(0) { $0 + $1.accepted } * size > 60 << 20, "\(found)")
        #expect(isSynchronous(mounted) == (options != "rw"))

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

    @Test func theCacheIsBackWhenThereIsRoom() throws {
        let mounted = try Mounted(options: "writeback=16M")
        let path = mounted.directory + "/file"
        #expect(Self.fill(path, writer: 0, size: 65_536, inTurnsWith: nil).refusal == ENOSPC)
        #expect(isSynchronous(mounted))
        // Whoever remounts without the flag takes away what keeps the data of others: it is set again.
        #expect(mount(nil, mounted.directory, nil, UInt(MS_REMOUNT | MS_NOATIME), nil) == 0)
        #expect(becomes(mounted, synchronous: true))
        #expect(MountedFilesystem.at(mounted.directory)?.flags.contains("noatime") == true, "the flags of the mount are nobody else's")
        let descriptor = open(path, O_WRONLY | O_APPEND | O_CLOEXEC)
        let block = [UInt8](repeating: 9, count: 1 << 20)
        #expect(write(descriptor, block, block.count) == -1 && errno == ENOSPC)
        #expect(close(descriptor) == 0)

        #expect(unlink(path) == 0)
        #expect(becomes(mounted, synchronous: false))
    }

    @Test func whatTakesMuchAtOnceWaitsUntilNothingIsHeld() throws {
        let mounted = try Mounted(options: "writeback=16M")
        let descriptor = open(mounted.directory + "/file", O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
        let block = [UInt8](repeating: 7, count: 1 << 20)
        for number in 0..<4 { #expect(pwrite(descriptor, block, block.count, number << 20) == block.count) }
        var room = statvfs()
        #expect(statvfs(mounted.directory, &room) == 0)
        #expect(test_fallocate(descriptor, 0, 4 << 20, Int64(room.f_bavail) * 4096 - 12 << 20) == 0)
        #expect(isSynchronous(mounted))
        #expect(test_fallocate(descriptor, 0, 0, 1 << 40) == ENOSPC)
        #expect(fsync(descriptor) == 0)
        close(descriptor)
        #expect(ProcessFiles.contents(mounted.directory + "/file")?.prefix(4 << 20).allSatisfy { $0 == 7 } == true)
        #expect(unlink(mounted.directory + "/file") == 0)
        #expect(becomes(mounted, synchronous: false))
    }

    @Test func aSynchronousMountStaysOne() throws {
        let mounted = try Mounted(options: "writeback=16M")
        #expect(mount(nil, mounted.directory, nil, UInt(MS_REMOUNT | MS_SYNCHRONOUS), nil) == 0)
        #expect(isSynchronous(mounted))
        usleep(200_000)
        let descriptor = open(mounted.directory + "/file", O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
        #expect(test_fallocate(descriptor, 0, 0, 64 << 20) == 0)
        #expect(ftruncate(descriptor, 0) == 0)
        close(descriptor)
        usleep(2_500_000)
        #expect(isSynchronous(mounted))
    }

    @Test func thereIsNoneWithoutRoomForIt() throws {
        let image = temporaryPath("image")
        let directory = temporaryPath("mount")
        #expect(daybook("mkfs", "--size", "128M", image).status == 0)
        mkdir(directory, 0o755)
        defer {
            unlink(image)
            rmdir(directory)
        }
        for options in ["writeback", "writeback=1G"] {
            let mounted = daybook("mount", "-o", options, image, directory)
            #expect(mounted.status == 0)
            #expect(mounted.errors.contains("no writeback cache: it takes "), "\(mounted.errors)")
            #expect(system("umount '\(directory)'") == 0)
        }
    }
}
