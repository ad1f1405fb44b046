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

    /// What a file handle is resolved by: the inode's own number, looked up as `.`; a file that is gone is stale.
    @Test func aFileHandleLeadsToItsFileOnly() throws {
        let volume = try openVolume(try makeDisk())
        let inode = try volume.make("f")
        func resolve() throws -> InodeNumber {
            try Array(".".utf8).withRawBytes { (name) throws(OperationError) in try volume.lookup(inode, name) }.inode
        }
        #expect(try resolve() == inode)
        volume.forget(inode, count: 1)
        try volume.unlink("f")
        #expect(throws: OperationError.stale) { try resolve() }
        try volume.close()
    }
}
