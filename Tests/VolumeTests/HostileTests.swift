// Goal: P7: an image made by somebody who knows the format, all checksums right, gives an error or is served, but is no trap.
// Method: one field after the other set to what nothing of ours would write, and the image then opened in every way and worked on.

import Device
import Format
import Journal
import Memory
import TestSupport
import Testing

@testable import Volume

@Suite struct HostileTests {
    /// A volume that was closed, and some records after it.
    private func makeImage() throws -> SimulatedDisk {
        let disk = try makeDisk()
        var volume = try openVolume(disk)
        try volume.make("a")
        try volume.write("a", pattern(20_000, 1))
        try volume.close()
        volume = try openVolume(disk)
        try volume.make("b")
        try volume.write("b", pattern(100, 2))
        try volume.commit()
        let copy = disk.copy()
        volume.abandon()
        return copy
    }

    /// Everything that might count on what was found. It may fail.
    private func use(_ disk: SimulatedDisk) {
        if let view = try? openVolume(disk.copy(), mode: .readOnly) {
            _ = view.statistics()
            _ = try? view.contents("a")
        }
        if let past = try? openVolume(disk.copy(), mode: .at(.sequence(SequenceNumber(1)))) { _ = try? past.names("") }
        guard let volume = try? openVolume(disk) else { return }
        _ = volume.statistics()
        _ = try? volume.make("c")
        _ = try? volume.write("c", pattern(9000, 3))
        _ = try? volume.rename("a", "d", flags: RenameFlags.whiteout)
        if let inode = try? volume.find("c").inode {
            let value = pattern(3000, 4)
            try? Array("user.x".utf8).withRawBytes { (name) throws(OperationError) in
                try value.withRawBytes { (value) throws(OperationError) in
                    try volume.setXattr(inode, name, value, create: false, replace: false, testCaller)
                }
            }
        }
        _ = try? volume.unlink("c")
        _ = try? volume.close()
    }

    @Test func superblocks() throws {
        let changes: [(inout Superblock) -> Void] = [
            { $0.generation = .max }, { $0.epoch = .max }, { $0.historyBlocks = .max }, { $0.spaceLevel = .max },
            { $0.checkpoint.rootLevel = .max }, { $0.checkpoint.inodes = .max }, { $0.checkpoint.nextInode = .max },
            { $0.checkpoint.nextInode = Limit.inode }, { $0.checkpoint.dataBlocks = .max },
            { $0.checkpoint.sequence = SequenceNumber(.max) }, { $0.checkpoint.journal.next = SequenceNumber(0) },
            { $0.checkpoint.journal.next = SequenceNumber(.max) }, { $0.checkpoint.journal.serial = .max },
            { $0.checkpoint.journal.block = .max }, { $0.checkpoint.journal.chunk = BlockNumber(.max) },
            { $0.checkpoint.time = Timestamp(nanoseconds: .max) }, { $0.checkpoint.deadBlocks = .max },
            { $0.pendingList = BlockNumber(.max) }, { $0.cut.block = .max }, { $0.cut.serial = .max },
        ]
        for change in changes {
            let disk = try makeImage()
            for (slot, block) in Superblock.slots.enumerated() {
                disk.corrupt(block) { bytes in
                    bytes.withRawBytes { page in
                        var superblock = try! Superblock(page, slot: slot)
                        change(&superblock)
                        superblock.store(page, slot: slot)
                    }
                }
            }
            use(disk)
        }
    }

    /// Rewrites the records of the journal's first frame after the checkpoint.
    private func changeFrame(_ disk: SimulatedDisk, _ change: (Record) -> Void) throws {
        let image = try Image(disk)
        let reader = try JournalReader(
            device: disk, id: image.superblock.id, chunkBlocks: image.superblock.chunkBlocks, from: image.superblock.checkpoint.journal,
            cut: nil)
        let header = try #require(try reader.next()).header
        disk.corrupt(header.address) { bytes in
            bytes.withRawBytes { bytes in
                var at = FrameHeader.size
                for _ in 0..<header.records {
                    let record = try! Record(bytes.from(at))
                    at += record.bytes.count
                    change(record)
                }
                _ = header.seal(bytes, id: image.superblock.id)
            }
        }
    }

    /// Two files patched at one home: the page of the first is still to be written when the second asks for it.
    @Test func onePatchOnAnother() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        for name in ["a", "b"] {
            try volume.make(name)
            try volume.write(name, pattern(100, 2))
        }
        try volume.commit()
        let copy = disk.copy()
        volume.abandon()
        var home: UInt64?
        try changeFrame(copy) { record in
            guard record.type == .write else { return }
            if let home { record.payload.set(u64: home, at: ContentPayload.firstSegment + 16) }
            home = record.payload.u64(at: ContentPayload.firstSegment + 16)
        }
        #expect(throws: OpenError.self) { try openVolume(copy.copy(), mode: .readOnly) }
        #expect(throws: OpenError.self) { try openVolume(copy) }
    }

    /// Numbers to count on from, in records.
    @Test func numbersInRecords() throws {
        for which in 0..<2 {
            let disk = try makeDisk()
            let volume = try openVolume(disk)
            let inode = try volume.make("a")
            if which == 0 {
                try volume.rename("a", "b", flags: RenameFlags.whiteout)
            } else {
                let value = pattern(3000, 4)
                try Array("user.x".utf8).withRawBytes { (name) throws(OperationError) in
                    try value.withRawBytes { (value) throws(OperationError) in
                        try volume.setXattr(inode, name, value, create: false, replace: false, testCaller)
                    }
                }
            }
            try volume.commit()
            let copy = disk.copy()
            volume.abandon()
            try changeFrame(copy) { record in
                switch record.type {
                case .rename: record.payload.set(u64: .max, at: 48)
                case .setxattr: record.payload.set(u64: .max, at: 16)
                default: break
                }
            }
            #expect(throws: OpenError.self) { try openVolume(copy) }
        }
    }

    /// A chunk's header in the last block of the image, and a place to read from beyond it.
    @Test func aChunkAtTheEndOfTheImage() throws {
        let disk = try makeImage()
        let last = BlockNumber(disk.blockCount - 1)
        for (slot, block) in Superblock.slots.enumerated() {
            var found: Superblock?
            disk.corrupt(block) { bytes in
                bytes.withRawBytes { page in
                    var superblock = try! Superblock(page, slot: slot)
                    superblock.checkpoint.journal.chunk = last
                    superblock.checkpoint.journal.block = 5
                    superblock.store(page, slot: slot)
                    found = superblock
                }
            }
            let superblock = try #require(found)
            disk.corrupt(last) { bytes in
                bytes.withRawBytes { page in
                    var position = superblock.checkpoint.journal
                    position.block = 1
                    ChunkHeader(position: position, successor: BlockNumber(1024), cut: superblock.cut).store(page, id: superblock.id)
                }
            }
        }
        use(disk)
    }
}
