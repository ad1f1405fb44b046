// Goal: scrub names everything that is not what it was written as, and where and when it was; and nothing else, also while the filesystem
// is worked in and its blocks are used again.
// Method: one block of each kind overwritten in an image with a past; a mount whose history is given up while it is scrubbed.

import Check
import Device
import Format
import Foundation
import Glibc
import Journal
import Memory
import Testing
import Volume

/// Where the block's bytes lie in the image.
private func findBlock(_ path: String, _ bytes: ArraySlice<UInt8>) -> UInt64? {
    let all = ProcessFiles.contents(path)!
    let first = bytes.first!
    for block in 16..<(all.count >> 12) {
        let start = block << 12
        if all[start] == first && all[start..<(start + 4096)].elementsEqual(bytes) { return UInt64(block) }
    }
    return nil
}

@Suite struct ScrubTests {
    private func contents(_ seed: UInt8, _ count: Int = 12_288) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 >> 6) &+ seed } }

    /// Many files, one of them rewritten, one removed, some checkpoints.
    private func makeImage() throws -> TestImage {
        let image = try TestImage(megabytes: 64)
        try image.change { volume in
            try volume.make("dir", mode: 0o040755)
            for number in 0..<120 { try volume.make("dir/f\(number)") }
            try volume.write("dir/f7", contents(1))
            try volume.make("gone")
            try volume.write("gone", contents(2))
        }
        try image.change { volume in
            try volume.write("dir/f7", contents(3), at: 4096)
            try volume.unlink("gone")
        }
        // Written and overwritten between two checkpoints: no tree ever held it.
        try image.change { volume in
            try volume.make("brief")
            try volume.write("brief", contents(4))
            try volume.write("brief", contents(5))
        }
        return image
    }

    private func find(_ image: TestImage, _ bytes: ArraySlice<UInt8>) throws -> UInt64 { try #require(findBlock(image.path, bytes)) }

    private func damages(_ image: TestImage) throws -> [[String: Any]] {
        let result = daybook("scrub", "--json", image.path)
        let object = try #require(try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any])
        let list = try #require(object["damage"] as? [[String: Any]])
        #expect(result.status == (list.isEmpty ? 0 : 4), "\(result.errors)")
        #expect(object["damages"] as? Int == list.count)
        return list
    }

    @Test func aWholeImageIsClean() throws {
        let image = try makeImage()
        #expect(try damages(image).isEmpty)
        let text = daybook("scrub", image.path)
        #expect(text.status == 0 && text.output.contains("no damage; "), "\(text.output)\(text.errors)")
        // After a crash, too.
        try image.change(crash: true) { volume in
            try volume.write("brief", contents(6))
            try volume.volume.commit()
        }
        #expect(try damages(image).isEmpty)
        #expect(daybook("scrub", "/dev/null").status == 1)
        #expect(daybook("scrub").status == 2)
        #expect(daybook("scrub", "--rate", "-1", image.path).status == 2)
    }

    @Test func theRateIsKeptAndProgressShown() throws {
        let image = try TestImage(megabytes: 64)
        try image.change { volume in
            try volume.make("file")
            for part in 0..<4 as Range<UInt64> { try volume.write("file", contents(UInt8(part), 1 << 20), at: part << 20) }
        }
        func seconds(_ body: () -> Void) -> Double {
            var (before, after) = (timespec(), timespec())
            clock_gettime(CLOCK_MONOTONIC, &before)
            body()
            clock_gettime(CLOCK_MONOTONIC, &after)
            return Double(after.tv_sec - before.tv_sec) + Double(after.tv_nsec - before.tv_nsec) / 1e9
        }
        var status: Int32 = -1
        #expect(seconds { status = daybook("scrub", "--rate", "2.5", image.path).status } > 1.5)
        #expect(status == 0)
        let result = daybook("scrub", "--progress", image.path)
        #expect(result.status == 0 && result.errors.contains(" 100 \(image.path)\n") && result.errors.hasSuffix("done 100 100 \(image.path)\n"))
    }

    @Test func aDataBlock() throws {
        let image = try makeImage()
        let block = try find(image, contents(3)[4096..<8192])
        image.overwrite(block)
        let found = try damages(image)
        #expect(found.count == 1)
        #expect(found[0]["kind"] as? String == "data" && found[0]["path"] as? String == "/dir/f7" && found[0]["block"] as? UInt64 == block)
        #expect(found[0]["offset"] as? Int == 8192 && found[0]["length"] as? Int == 4096 && found[0]["present"] as? Bool == true)
        // The record that wrote it.
        let write = try #require(daybook("log", image.path).lines.last { $0.contains("/dir/f7") && $0.contains("write") })
        #expect(found[0]["first_sequence"] as? Int == Int(write.split(separator: " ")[0]))
        #expect(found[0]["first_time"] != nil && found[0]["last_sequence"] == nil)
        let text = daybook("scrub", image.path)
        #expect(text.status == 4 && text.lines[0].contains("data damaged: /dir/f7, offset 8192, inode"), "\(text.output)")
        #expect(text.lines[0].contains("block \(block): ") && text.lines[0].contains("needed now and at every point from sequence"))
    }

    @Test func dataOfThePast() throws {
        let image = try makeImage()
        let log = daybook("log", image.path).lines
        func sequence(_ words: [String]) throws -> Int {
            let line = try #require(log.first { line in words.allSatisfy { line.contains($0) } })
            return Int(line.split(separator: " ")[0])!
        }
        let block = try find(image, contents(2)[4096..<8192])
        image.overwrite(block)
        let found = try damages(image)
        #expect(found.count == 1, "\(found)")
        #expect(found[0]["path"] as? String == "/gone" && found[0]["offset"] as? Int == 4096 && found[0]["present"] as? Bool == false)
        #expect(found[0]["first_sequence"] as? Int == (try sequence(["write", "/gone"])))
        // What the reclaiming freed was there until just before it.
        let last = try #require(found[0]["last_sequence"] as? Int)
        #expect(last >= (try sequence(["unlink", "/gone"])) && found[0]["last_time"] != nil)
        #expect(daybook("scrub", image.path).output.contains("needed at the points from sequence"))

        let brief = try find(image, contents(4)[0..<4096])
        image.overwrite(brief)
        let both = try damages(image)
        #expect(both.count == 2, "\(both)")
        let other = try #require(both.first { $0["block"] as? UInt64 == brief })
        #expect(other["path"] as? String == "/brief" && other["offset"] as? Int == 0)
        let writes = log.filter { $0.contains("write") && $0.contains("/brief") }.map { Int($0.split(separator: " ")[0])! }
        #expect(other["first_sequence"] as? Int == writes[0] && other["last_sequence"] as? Int == writes[1] - 1)
    }

    @Test func aNode() throws {
        let image = try makeImage()
        let device = try FileDevice(path: image.path, access: .readOnly)
        let root = try Image(device).superblock.checkpoint
        let page = AlignedBuffer(count: blockSize)
        try device.read(root.root.address, into: page.bytes)
        try #require(root.rootLevel == 1)
        let leaf = ChildReference(NodeLayout.value(page.bytes, NodeLayout.count(page.bytes) - 1))
        image.overwrite(leaf.address.value)
        let found = try damages(image)
        #expect(found.count == 1, "\(found)")
        #expect(found[0]["kind"] as? String == "node" && found[0]["block"] as? UInt64 == leaf.address.value)
        #expect(found[0]["present"] as? Bool == true && found[0]["inode"] != nil)
        #expect((found[0]["path"] as? String)?.hasPrefix("/") == true, "\(found)")
        image.overwrite(root.root.address.value)
        #expect(try damages(image).contains { $0["path"] as? String == "/" && $0["block"] as? UInt64 == root.root.address.value })
    }

    @Test func aFrame() throws {
        let image = try makeImage()
        let device = try FileDevice(path: image.path, access: .readOnly)
        let checkpoints = try Image(device).space.checkpoints()
        let position = checkpoints[1].journal
        image.overwrite(position.chunk.value + UInt64(position.block))
        let found = try damages(image)
        #expect(found.count == 1, "\(found)")
        #expect(found[0]["kind"] as? String == "journal")
        #expect(found[0]["first_sequence"] as? UInt64 == checkpoints[1].sequence.value + 1)
        #expect(found[0]["last_sequence"] as? UInt64 == checkpoints[2].sequence.value)
        #expect(found[0]["first_time"] != nil && found[0]["last_time"] != nil)
        #expect(daybook("scrub", image.path).lines[0].contains("records from \(checkpoints[1].sequence.value + 1) (after "))
    }

    @Test func whatHasNoHistory() throws {
        let image = try makeImage()
        let device = try FileDevice(path: image.path, access: .readOnly)
        let opened = try Image(device)
        let lists = try opened.space.checkpoints().filter { $0.deadList.value != 0 }.map { $0.deadList.value }
        try #require(!lists.isEmpty)
        for (block, kind) in [(0, "superblock"), (device.blockCount - 1, "superblock")] + lists.map({ ($0, "space") })
            + [(opened.superblock.spaceRoot.address.value, "space")]
        {
            let image = try makeImage()
            image.overwrite(block)
            let found = try damages(image)
            #expect(found.contains { $0["kind"] as? String == kind && $0["block"] as? UInt64 == block && $0["present"] == nil }, "\(block): \(found)")
        }
    }
}

/// History given up faster than it is read, blocks used again while they are on the list.
@Suite(.enabled(if: canMount, "not root, or no /dev/fuse"), .serialized, .timeLimit(.minutes(2)))
struct OnlineScrubTests {
    @Test func whatIsUsedAgainIsNoDamage() throws {
        let mounted = try Mounted()
        defer { mounted.unmount() }
        let block = [UInt8](repeating: 7, count: 1 << 20)
        func fill(_ round: Int) {
            let descriptor = open(mounted.directory + "/file\(round % 7)", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
            defer { close(descriptor) }
            for part in 0..<8 {
                var bytes = block
                bytes[0] = UInt8(truncatingIfNeeded: round)
                bytes[4096] = UInt8(truncatingIfNeeded: part)
                _ = Glibc.write(descriptor, bytes, bytes.count)
            }
        }
        for round in 0..<12 { fill(round) }
        let before = try Image(try FileDevice(path: mounted.image, access: .readOnly)).superblock.horizon
        let ended = Lock()
        nonisolated(unsafe) var results: [Finished] = []
        nonisolated(unsafe) var isDone = false
        let directory = mounted.directory
        let scrubs = Thread(name: "scrubs") {
            for rate in ["40", "0", "60"] {
                let result = daybook("scrub", "--rate", rate, directory)
                ended.withLock { results.append(result) }
            }
            ended.withLock { isDone = true }
        }
        var round = 12
        while !ended.withLock({ isDone }) && round < 2000 {
            fill(round)
            round += 1
        }
        scrubs.join()
        for result in results {
            #expect(!result.output.contains("damaged"), "\(result.output)")
            #expect(result.status == 0 || result.status == 1 && result.errors.contains("not all could be verified"), "\(result.errors)")
        }
        let after = try Image(try FileDevice(path: mounted.image, access: .readOnly)).superblock.horizon
        #expect(after > before, "no history was given up: the test says nothing")
        #expect(daybook("scrub", mounted.directory).status == 0)
    }

    /// Damage is told beside a daemon as well.
    @Test func damageBesideADaemon() throws {
        let mounted = try Mounted()
        let bytes = [UInt8](repeating: 0x5a, count: 4096) + [UInt8](repeating: 0x5b, count: 4096)
        mounted.write("file", String(decoding: bytes, as: UTF8.self))
        #expect(daybook("scrub", mounted.directory).status == 0)
        let block = try #require(findBlock(mounted.image, bytes[4096...]))
        let descriptor = open(mounted.image, O_WRONLY)
        #expect(pwrite(descriptor, "damage", 6, off_t(block << 12)) == 6)
        close(descriptor)
        let result = daybook("scrub", mounted.directory)
        #expect(result.status == 4 && result.output.contains("/file, offset 4096"), "\(result.output)\(result.errors)")
        mounted.unmount()
    }
}
