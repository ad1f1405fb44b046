// Goal: the live volume does what its operations say, through remount, crash and past views.
// Method: operations on a simulated disk, compared with plain values kept beside them.

import Device
import Format
import Memory
import TestSupport
import Testing
import Volume

@Suite struct VolumeTests {
    @Test func emptyFilesystemMountsAndCloses() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        #expect(try volume.names("") == [])
        #expect(volume.recoveryReport == nil)
        try volume.close()
        let again = try openVolume(disk)
        #expect(again.recoveryReport == nil)
        try again.close()
    }

    @Test func filesSurviveARemount() throws {
        let disk = try makeDisk()
        var volume = try openVolume(disk)
        try volume.makeDirectory("a")
        var expected: [String: [UInt8]] = [:]
        for (index, size) in [0, 1, 100, 1023, 1024, 4095, 4096, 4097, 10_000, 70_000, 1_500_000].enumerated() {
            let path = "a/file\(index)"
            try volume.make(path)
            let bytes = pattern(size, UInt64(index))
            try volume.write(path, bytes)
            expected[path] = bytes
        }
        for (path, bytes) in expected { #expect(try volume.contents(path) == bytes, "before remount: \(path)") }
        try volume.close()
        volume = try openVolume(disk)
        for (path, bytes) in expected { #expect(try volume.contents(path) == bytes, "after remount: \(path)") }
        #expect(try volume.names("a") == expected.keys.map { String($0.dropFirst(2)) }.sorted())
        try volume.close()
    }

    /// How the kernel turns a file handle into an inode that it has forgotten: open_by_handle_at(2), NFS. generic/426 and 477 of
    /// xfstests.
    @Test func aNumberLeadsToItsInodeAgain() throws {
        let disk = try makeDisk()
        var volume = try openVolume(disk)
        try volume.makeDirectory("a")
        let inodes = [try volume.find("a").inode, try volume.make("a/file"), try volume.make("a/link", mode: 0o120777, target: "x")]
        try volume.make("gone")
        let gone = try volume.find("gone").inode
        try volume.unlink("gone")
        func itself(_ inode: InodeNumber) throws -> Attributes {
            let found = try [UInt8(ascii: ".")].withRawBytes { (name) throws(OperationError) in try volume.lookup(inode, name) }
            volume.forget(found.inode, count: 1)
            return found
        }
        for _ in 0..<2 {
            for inode in inodes {
                let found = try itself(inode)
                #expect(found.inode == inode)
                #expect(found.item == (try volume.attributes(inode)).item)
            }
            for inode in [gone, InodeNumber(1_000_000), InodeNumber(0), InodeNumber(.max)] {
                #expect(throws: OperationError.self) { try itself(inode) }
            }
            let parent = try Array("..".utf8).withRawBytes { (name) throws(OperationError) in try volume.lookup(inodes[0], name) }
            #expect(parent.inode == .root)
            volume.forget(.root, count: 1)
            try volume.close()
            volume = try openVolume(disk)
        }
        try volume.close()
    }

    @Test func committedStateSurvivesACrash() throws {
        for seed in 0..<20 as Range<UInt64> {
            let disk = try makeDisk()
            var random = SeededRandom(seed: seed)
            let volume = try openVolume(disk)
            for index in 0..<30 {
                try volume.make("f\(index)")
                try volume.write("f\(index)", pattern(index * 700, UInt64(index)))
            }
            try volume.commit()
            for index in 0..<30 { try volume.write("f\(index)", pattern(300, 1000 + UInt64(index)), at: 50) }
            let after = disk.crash(&random)
            volume.abandon()
            let recovered = try openVolume(after)
            #expect(recovered.recoveryReport != nil, "seed \(seed)")
            for index in 0..<30 {
                #expect(try recovered.contents("f\(index)") == pattern(index * 700, UInt64(index)), "seed \(seed), file \(index)")
            }
            try recovered.close()
            let again = try openVolume(after)
            #expect(again.recoveryReport == nil)
            try again.close()
        }
    }

    /// Zero bytes copied mean the end of the source; at the last offset that a file can have it is an error instead. generic/564 of
    /// xfstests.
    @Test func copyingBeyondTheLargestFile() throws {
        let volume = try openVolume(try makeDisk())
        try volume.make("from")
        try volume.write("from", pattern(10_000, 1))
        let (from, to) = (try volume.find("from").inode, try volume.make("to"))
        let copied = try volume.copyRange(from: from, at: 0, to: to, at: Limit.fileSize - 5000, length: 10_000, testCaller)
        #expect(copied == 5000)
        #expect(throws: OperationError.tooLarge) {
            try volume.copyRange(from: from, at: 5000, to: to, at: Limit.fileSize, length: 5000, testCaller)
        }
        #expect(try volume.copyRange(from: from, at: 10_000, to: to, at: 0, length: 5000, testCaller) == 0)
        try volume.close()
    }
}
