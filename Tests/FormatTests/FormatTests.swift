// Goal: what is written is read back the same, and no bytes whatever make decoding trap.
// Method: round trips; then records, nodes, superblocks, frames and lists with random bytes changed. A failure prints its seed.

import Device
import Format
import Memory
import Testing

private let id = FilesystemID(high: 0x0123_4567_89ab_cdef, low: 0xfedc_ba98_7654_3210)

private func position(_ next: UInt64) -> JournalPosition {
    JournalPosition(chunk: BlockNumber(2048), serial: 3, block: 7, epoch: 2, nonce: 99, chain: 1234, next: SequenceNumber(next))
}

private func sampleSuperblock() -> Superblock {
    let root = ChildReference(address: BlockNumber(100), birth: SequenceNumber(9), crc: 77)
    let checkpoint = CheckpointItem(
        sequence: SequenceNumber(9), time: Timestamp(nanoseconds: 5), root: root, rootLevel: 2, nextInode: 50, inodes: 40,
        dataBlocks: 30, journal: position(10))
    var superblock = Superblock(
        id: id, label: "état", blockCount: 100_000, chunkBlocks: 256, seed: HashSeed(k0: 1, k1: 2), nonce: 3,
        created: Timestamp(nanoseconds: 4), checkpoint: checkpoint, spaceRoot: root)
    superblock.cut = position(8)
    superblock.generation = 17
    superblock.pendingList = BlockNumber(55)
    return superblock
}

/// One record of each kind, with its payload.
private func sampleRecords() -> [[UInt8]] {
    func record(_ type: RecordType, _ payload: Int, _ fill: (RawBytes) -> Void) -> [UInt8] {
        let owner = AlignedBuffer(count: Record.size(payload: payload))
        defer { withExtendedLifetime(owner) {} }
        let bytes = owner.bytes
        RecordHeader(type: type, sequence: SequenceNumber(5), time: Timestamp(nanoseconds: 6), uid: 1, gid: 2, pid: 3).store(bytes)
        fill(bytes.from(RecordHeader.size))
        return bytes.array
    }
    let name = Array("name".utf8)
    let long = [UInt8](repeating: 65, count: 700)
    return name.withRawBytes { name in
        long.withRawBytes { long in
            [
                record(.symlink, MakePayload.size(name: 4, target: 700)) {
                    MakePayload.store(
                        $0, parent: .root, entry: 128, inode: InodeNumber(9), mode: 0o120777, uid: 0, gid: 0, device: 0, name: name,
                        target: long)
                },
                record(.link, NamePayload.fixed + 4) {
                    NamePayload.store($0, parent: .root, entry: 256, inode: InodeNumber(9), name: name)
                },
                record(.rename, RenamePayload.fixed + 8) {
                    RenamePayload.store(
                        $0, parent: .root, entry: 128, inode: InodeNumber(9), newParent: .root, newEntry: 256, other: .none,
                        whiteoutInode: .none, flags: 0, name: name, newName: name)
                },
                record(.setattr, AttributesPayload.fixed) {
                    AttributesPayload(
                        inode: InodeNumber(9), mask: 31, mode: 0o100644, uid: 1, gid: 2, accessed: Timestamp(nanoseconds: 1),
                        modified: Timestamp(nanoseconds: 2)
                    ).store($0)
                },
                record(.setxattr, XattrPayload.fixed + 704) {
                    XattrPayload.store($0, inode: InodeNumber(9), entry: 128, pieces: InodeNumber(11), name: name, value: long)
                },
                record(.write, ContentPayload.fixed + Segment.size(run: 5) + Segment.size(patch: 700) + 2 * Segment.fixed) {
                    ContentPayload.store(
                        $0, inode: InodeNumber(9), offset: 1, length: 2, size: 3, mode: 0o100644, segments: 4, fallocateMode: 0)
                    var at = ContentPayload.firstSegment
                    Segment.storeRun($0.from(at), fileBlock: 0, home: BlockNumber(500), blocks: 5)
                    at += Segment.size(run: 5)
                    Segment.storePatch($0.from(at), fileBlock: 5, home: BlockNumber(600), offset: 3000, data: long)
                    at += Segment.size(patch: 700)
                    Segment.storePlain($0.from(at), kind: .unwritten, fileBlock: 6, home: BlockNumber(700), blocks: 9)
                    Segment.storePlain($0.from(at + 24), kind: .hole, fileBlock: 20, home: BlockNumber(0), blocks: 1000)
                },
                record(.reclaim, ReclaimPayload.fixed + ReclaimPayload.item) {
                    ReclaimPayload.store($0, 0, inode: InodeNumber(9), fromBlock: 3, outcome: .trimmed)
                },
                record(.access, 16) { $0.set(u64: 9, at: 0) },
                record(.horizon, 8) { $0.set(u64: 4, at: 0) },
            ]
        }
    }
}

@Suite struct FormatTests {
    @Test func checksumIsCRC32C() {
        // RFC 3720, B.4.
        #expect([UInt8](repeating: 0, count: 32).withRawBytes { $0.crc32c() } == 0x8a91_36aa)
        #expect([UInt8](0..<32).withRawBytes { $0.crc32c() } == 0x46dd_794e)
        // The three-stream path against the same bytes summed piece by piece.
        let bytes = (0..<9000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        for count in [0, 1, 7, 8, 503, 504, 4079, 4080, 4096, 9000] {
            let whole = Array(bytes.prefix(count)).withRawBytes { $0.crc32c() }
            var pieces: UInt32 = 0
            for byte in bytes.prefix(count) { pieces = [byte].withRawBytes { $0.crc32c(pieces) } }
            #expect(whole == pieces, "\(count) bytes")
        }
    }

    @Test func nameHashIsSipHash() {
        // The reference implementation's first vectors, key 00 01 … 0f.
        let seed = HashSeed(k0: 0x0706_0504_0302_0100, k1: 0x0f0e_0d0c_0b0a_0908)
        let expected: [UInt64] = [0x726f_db47_dd0e_0e31, 0x74f8_39c5_93dc_67fd, 0x0d6c_8009_d9a9_4f5a]
        for (count, hash) in expected.enumerated() {
            #expect([UInt8](0..<UInt8(count)).withRawBytes { NameHash.sipHash24($0, seed) } == hash)
        }
        #expect([UInt8](0..<15).withRawBytes { NameHash.sipHash24($0, seed) } == 0xa129_ca61_49be_45e5)
    }

    @Test func superblockRoundTrip() throws {
        let owner = AlignedBuffer(count: blockSize)
        defer { withExtendedLifetime(owner) {} }
        let page = owner.bytes
        let superblock = sampleSuperblock()
        superblock.store(page, slot: 1)
        #expect(try Superblock(page, slot: 1) == superblock)
        #expect(throws: FormatError.self) { try Superblock(page, slot: 0) }
        for byte in [0, 8, 12, 40, 300, 4095] {
            page.set(u8: page.u8(at: byte) ^ 1, at: byte)
            #expect(throws: FormatError.self, "byte \(byte)") { try Superblock(page, slot: 1) }
            page.set(u8: page.u8(at: byte) ^ 1, at: byte)
        }
    }

    @Test func framesAreAcceptedOnlyInTheirPlace() throws {
        let owner = AlignedBuffer(count: blockSize)
        defer { withExtendedLifetime(owner) {} }
        let frame = owner.bytes
        let header = FrameHeader(
            position: position(10), last: SequenceNumber(12), time: Timestamp(nanoseconds: 3), payload: 100, records: 3, flags: 0)
        let chain = header.seal(frame, id: id)
        #expect(chain == FrameHeader.chain(frame))
        #expect(try FrameHeader.decode(frame, at: position(10), id: id).get() == header)
        var elsewhere: [JournalPosition] = []
        for change in [
            { $0.chunk = BlockNumber(4096) }, { $0.serial += 1 }, { $0.block += 1 }, { $0.epoch += 1 }, { $0.nonce += 1 },
            { $0.chain += 1 }, { $0.next = SequenceNumber(11) },
        ] as [(inout JournalPosition) -> Void] {
            var other = position(10)
            change(&other)
            elsewhere.append(other)
        }
        for other in elsewhere { #expect(throws: FrameHeader.RejectionError.self) { try FrameHeader.decode(frame, at: other, id: id).get() } }
        frame.set(u8: 1, at: 3000)
        #expect(throws: FrameHeader.RejectionError.self) { try FrameHeader.decode(frame, at: position(10), id: id).get() }
    }

    @Test func recordsRoundTrip() throws {
        for bytes in sampleRecords() {
            try bytes.withRawBytes { bytes in
                let record = try Record(bytes)
                #expect(record.sequence == SequenceNumber(5) && record.bytes.count == bytes.count)
            }
        }
    }

    /// Decoding may refuse, but not trap, and not read beyond the bytes given (RawBytes would trap).
    @Test(arguments: 0..<8 as Range<UInt64>) func mutatedBytesNeverTrap(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        var accepted = 0
        for _ in 0..<3000 {
            var bytes = sampleRecords().randomElement(using: &random)!
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
            }
            if Bool.random(using: &random) { bytes.removeLast(Int.random(in: 0..<bytes.count, using: &random)) }
            bytes.withRawBytes { raw in
                guard let record = try? Record(raw) else { return }
                accepted += 1
                if let content = ContentPayload(record.payload), [.write, .truncate, .fallocate].contains(record.type) {
                    var at = ContentPayload.firstSegment
                    for _ in 0..<content.segments { at = Segment(content.bytes, at: at)!.next }
                }
                if record.type == .reclaim, let reclaim = ReclaimPayload(record.payload) {
                    for index in 0..<reclaim.count { _ = reclaim.entry(index) }
                }
            }
        }
        #expect(accepted > 100, "seed \(seed): nothing got past the first checks")
        // Nodes, superblocks, bitmaps and lists, checksums put right after the change.
        let owner = AlignedBuffer(count: blockSize)
        defer { withExtendedLifetime(owner) {} }
        let page = owner.bytes
        for _ in 0..<2000 {
            NodeLayout.initialize(page, kind: .main, level: UInt8.random(in: 0...1, using: &random), id: id)
            for _ in 0..<6 { page.set(u8: UInt8.random(in: 0...255, using: &random), at: Int.random(in: 24..<200, using: &random)) }
            let crc = NodeLayout.seal(page, address: BlockNumber(5), birth: SequenceNumber(1))
            let reference = ChildReference(address: BlockNumber(5), birth: SequenceNumber(1), crc: crc)
            if (try? NodeLayout.validate(page, kind: .main, id: id, expected: reference, level: nil)) != nil {
                for index in 0..<NodeLayout.count(page) { _ = (NodeLayout.key(page, index), NodeLayout.value(page, index).count) }
            }
            sampleSuperblock().store(page, slot: 0)
            page.set(u8: UInt8.random(in: 0...255, using: &random), at: Int.random(in: 16..<528, using: &random))
            page.set(u32: page.crc32c(skipping: 12), at: 12)
            _ = try? Superblock(page, slot: 0)
            let noise = (0..<Int.random(in: 0...64, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
            noise.withRawBytes { value in
                _ = (EntryItem(value), XattrItem(value), RegionItem(value), ChunkItem(value))
                try? ExtentItem.validate(value, key: Key(.root, .extent, random.next()), blockCount: 1000)
                try? InodeItem.validate(value, inode: .root)
            }
        }
    }
}
