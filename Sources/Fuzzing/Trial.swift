// Trial: everything that reads an image, on one mutant, in this process. Any answer is right; no answer, a trap or memory without bound is
// not. Whoever runs trials in a process of their own learns from `stage` where it was when it ended.

import ByPath
import Check
public import Device
import Digest
import Format
import Glibc
import Journal
import Memory
import Volume

public struct Trial {
    private let disk: MutantDisk
    private let stage: (String) -> Void
    private let random: UInt64

    /// `random`: what is left to chance in the operations.
    public init(_ disk: MutantDisk, random: UInt64, stage: @escaping (String) -> Void) {
        self.disk = disk
        self.random = random
        self.stage = stage
    }

    /// What happened that must not, if anything did.
    public func run() -> [String] {
        var violations: [String] = []
        let before = disk.contents
        func expectUnwritten(_ copy: MutantDisk, _ what: String) {
            if let violation = copy.violation { violations.append("\(what): \(violation)") }
        }
        parse()
        readOnly()
        past()
        stage("check")
        check(disk)
        stage("scrub")
        scrub()
        stage("digest")
        digest()
        if disk.contents != before { violations.append("reading has changed the image") }
        // As fsck -n does: replay in memory, then check.
        stage("replay and check")
        let overlay = OverlayDevice(disk, limit: 1 << 16)
        if let volume = open(overlay, .readWrite) {
            _ = try? volume.close()
            volume.abandon()
            check(overlay)
        }
        stage("write")
        let written = disk.copy()
        write(written)
        expectUnwritten(written, "writing")
        stage("repair")
        let repaired = disk.copy()
        repair(repaired)
        expectUnwritten(repaired, "repairing")
        expectUnwritten(disk, "reading")
        return violations
    }

    private func open(_ device: any BlockDevice, _ mode: OpenOptions.Mode) -> Volume? {
        var options = OpenOptions()
        options.mode = mode
        options.cacheBytes = 16 << 20
        options.commitSeconds = 1000
        options.accessTimes = .always
        let clock = Clock()
        return try? Volume.open(device, options: options, clock: { clock.next() }, random: { 4242 }, onEvent: { _ in })
    }

    // MARK: parsers

    /// Every block of the mutant as every structure, checksums or not.
    private func parse() {
        stage("parse")
        let id = (try? Image(disk).superblock.id) ?? FilesystemID(high: 0x0123_4567_89ab_cdef, low: 0x1122_3344_5566_7788)
        for (number, bytes) in disk.contents {
            bytes.withRawBytes { page in
                for slot in 0...2 { _ = try? Superblock(page, slot: slot) }
                _ = ChunkHeader(page, at: BlockNumber(number), id: id)
                var position = JournalPosition(page.slice(32, JournalPosition.size))
                _ = FrameHeader.decode(page, at: position, id: id)
                // Believing what it says of itself.
                position = JournalPosition(
                    chunk: BlockNumber(page.u64(at: 40) &- 1), serial: page.u64(at: 48), block: 1, epoch: page.u64(at: 24), nonce: page.u64(at: 32),
                    chain: page.u64(at: 88), next: SequenceNumber(page.u64(at: 56)))
                if page.u64(at: 40) > 0 { _ = FrameHeader.decode(page, at: position, id: id) }
                _ = FrameHeader.length(page)
                parseRecords(page)
                parseNode(page, number, id)
                for (magic, size) in [(magicDeadList, DeadEntry.size), (magicPending, 16)] {
                    if let list = try? ListBlock.validate(
                        page, magic: magic, itemSize: size, address: BlockNumber(number), crc: page.u32(at: 4), id: id)
                    {
                        for index in 0..<list.count {
                            let item = page.slice(ListBlock.header + index * size, size)
                            if size == DeadEntry.size { _ = DeadEntry(item) } else { _ = item.u64(at: 8) }
                        }
                    }
                }
                let region = RegionItem(bitmap: BlockNumber(number), crc: page.u32(at: 4), free: 0)
                _ = try? Region.validate(page, region: page.u64(at: 8) % 16, item: region, id: id, blockCount: disk.blockCount)
            }
        }
    }

    private func parseRecords(_ page: RawBytes) {
        guard page.u32(at: 0) == magicFrame else { return }
        var at = FrameHeader.size
        while at < page.count, let record = try? Record(page.from(at)) {
            parse(record)
            at += record.bytes.count
        }
        // From the middle of others.
        for at in stride(from: FrameHeader.size, to: page.count - RecordHeader.size, by: 104) {
            if let record = try? Record(page.from(at)) { parse(record) }
        }
    }

    private func parse(_ record: Record) {
        let payload = record.payload
        _ = MakePayload(payload)
        _ = NamePayload(payload)
        _ = RenamePayload(payload)
        _ = AttributesPayload(payload)
        _ = XattrPayload(payload)
        if let reclaim = ReclaimPayload(payload) { for index in 0..<reclaim.count { _ = reclaim.entry(index) } }
        for content in [ContentPayload(payload), ClonePayload(payload)?.content] {
            guard let content else { continue }
            var at = ContentPayload.firstSegment
            for _ in 0..<content.segments {
                guard let segment = Segment(content.bytes, at: at) else { break }
                at = segment.next
            }
        }
    }

    private func parseNode(_ page: RawBytes, _ number: UInt64, _ id: FilesystemID) {
        guard page.u32(at: 0) == magicNode else { return }
        for kind in [NodeLayout.Kind.main, .space] {
            let expected = ChildReference(address: NodeLayout.address(page), birth: NodeLayout.birth(page), crc: page.u32(at: 4))
            guard (try? NodeLayout.validate(page, kind: kind, id: id, expected: expected, level: nil)) != nil else { continue }
            for index in 0..<NodeLayout.count(page) {
                let key = NodeLayout.key(page, index)
                let value = NodeLayout.value(page, index)
                _ = EntryItem(value)
                _ = XattrItem(value)
                if (try? InodeItem.validate(value, inode: key.inode)) != nil { _ = InodeItem(value).kind }
                if (try? ExtentItem.validate(value, key: key, blockCount: disk.blockCount)) != nil {
                    let extent = ExtentItem(value)
                    if !extent.isUnwritten { for block in 0..<Int(extent.blocks) { _ = ExtentItem.crc(value, block) } }
                }
                _ = RegionItem(value)
                _ = ChunkItem(value)
                _ = ShareItem(value)
                if value.count == CheckpointItem.size { _ = CheckpointItem(value).isPlausible }
            }
        }
    }

    // MARK: reading

    private func readOnly() {
        stage("read")
        guard let volume = open(disk, .readOnly) else { return }
        visit(volume)
        _ = try? volume.close()
    }

    private func past() {
        stage("past")
        guard let image = try? Image(disk) else { return }
        _ = image.horizon
        let last = image.superblock.checkpoint.sequence.value
        let low = min(image.horizon.value, last)
        var draw = SeededRandom(seed: random)
        for point in [Point.sequence(SequenceNumber(low)), .sequence(SequenceNumber(UInt64.random(in: low...last, using: &draw))),
            .sequence(SequenceNumber(last &+ 3)), .time(Timestamp(nanoseconds: 1_700_003_700_000_000_000))]
        {
            if let volume = open(disk, .at(point)) { visit(volume, limit: 40) }
        }
    }

    /// From the root as far as names lead, and some numbers besides.
    private func visit(_ volume: Volume, limit: Int = 400) {
        _ = volume.statistics()
        var queue: [InodeNumber] = [.root]
        var seen: Set<InodeNumber> = []
        let buffer = AlignedBuffer(count: 1 << 18)
        for number in 1..<40 as Range<UInt64> { queue.append(InodeNumber(number)) }
        while let inode = queue.popLast(), seen.count < limit {
            guard seen.insert(inode).inserted, let found = try? volume.attributes(inode) else { continue }
            for name in ((try? volume.listXattrs(inode, .housekeeping)) ?? []).split(separator: 0).prefix(20) {
                _ = try? Array(name).withRawBytes { (name) throws(OperationError) in try volume.xattr(inode, name) { $0.count } }
            }
            _ = try? volume.readLink(inode) { $0.count }
            var names: [[UInt8]] = []
            try? volume.list(inode, from: 0, attributes: false) { entry in
                names.append(entry.name.array)
                queue.append(entry.inode)
                return names.count < 500
            }
            try? volume.list(inode, from: 1 << 62, attributes: true) { _ in true }
            for name in names.prefix(50) {
                if let found = try? name.withRawBytes({ (name) throws(OperationError) in try volume.lookup(inode, name) }) {
                    volume.forget(found.inode, count: 1)
                }
            }
            guard found.item.isRegular else { continue }
            for offset in [0, 5000, found.item.length > 4096 ? found.item.length - 4096 : 0, found.item.length / 2, found.item.length &+ 1] {
                _ = try? volume.read(inode, at: offset, into: buffer.bytes)
            }
            var at: UInt64 = 0
            for step in 0..<20 {
                guard let next = try? volume.seek(inode, from: at, to: step % 2 == 0 ? .hole : .data), next >= at else { break }
                at = next
            }
        }
    }

    private func digest() {
        for point in [nil, Point.sequence(SequenceNumber(60))] {
            guard let view = try? Image(disk).view(at: point, cacheBytes: 16 << 20).view else { continue }
            // A sparse file of 2^62 bytes costs what it holds; a tree that never ends would cost for ever.
            let tree = TreeDigest()
            tree.countsRoot = false
            _ = try? tree.digest(ViewSource(view))
        }
    }

    private func check(_ device: any BlockDevice) {
        for verifiesData in [true, false] {
            var options = CheckOptions()
            options.verifyData = verifiesData
            _ = try? Checker(device, options: options).run()
        }
    }

    private func scrub() {
        for hasWriter in [false, true] {
            _ = try? Scrubber(disk, hasWriter: { hasWriter }, commit: { hasWriter }, onDamage: { _ in }).run()
        }
    }

    // MARK: writing

    private func write(_ copy: MutantDisk) {
        guard let volume = open(copy, .readWrite) else { return }
        visit(volume, limit: 60)
        let session = PathVolume(volume)
        _ = try? session.churn(9)
        stage("write: commit")
        _ = try? volume.commit()
        stage("write: operations")
        var draw = SeededRandom(seed: random)
        for number in 2..<30 as Range<UInt64> {
            let inode = InodeNumber(number)
            _ = try? session.write(inode, 6000, at: UInt64.random(in: 0..<60_000, using: &draw))
            var change = AttributeChange()
            change.size = UInt64.random(in: 0..<50_000, using: &draw)
            if number % 3 == 0 { _ = try? volume.setAttributes(inode, change, session.caller) }
            if number % 5 == 0 { _ = try? volume.copyRange(from: InodeNumber(number + 1), at: 0, to: inode, at: 8192, length: 40_000, session.caller) }
            if number % 7 == 0 { _ = try? volume.fallocate(inode, mode: 3, offset: 4096, length: 30_000, session.caller) }
        }
        _ = try? session.change()
        for path in ["dir/sub/hard1", "long", "churn1/e", "churn1/d", "copy", "big"] { _ = try? session.unlink(path) }
        _ = try? session.rename("dir/sub", "moved")
        stage("write: checkpoint")
        _ = try? volume.checkpointNow()
        _ = try? session.churn(8)
        stage("write: close")
        _ = try? volume.close()
        volume.abandon()
        stage("write: again")
        if let again = open(copy, .readOnly) { visit(again, limit: 60) }
    }

    /// What fsck does to an image.
    private func repair(_ copy: MutantDisk) {
        guard let state = try? SlotState(copy) else { return }
        if state.slots[1 - state.newestSlot] == nil { try? Repair.slot(state, copy) }
        try? Repair.mark(state, copy, isDamaged: false)
        try? Repair.identity(of: state.newest, copy)
        guard let report = try? Checker(copy).run(), let volume = open(copy, .readWrite) else { return }
        _ = volume.release(leaked: report.leaks.map { ($0.start, $0.count) })
        _ = try? volume.close()
        volume.abandon()
    }
}

private final class Clock: @unchecked Sendable {
    private let lock = Lock()
    private var nanoseconds: Int64 = 1_700_100_000_000_000_000
    func next() -> Timestamp {
        lock.withLock {
            nanoseconds += 1_000_000
            return Timestamp(nanoseconds: nanoseconds)
        }
    }
}
