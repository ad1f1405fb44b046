// UndoFile: what the blocks held that a repair changes, so that `fsck --undo` can put it back byte for byte.
//
//   ┌ header, 1 block ┬ index, 64 bytes an entry, to the end of a block ┬ contents, 1 block each ┐
//
//   header   0 magic 8 │ 8 version 4 │ 12 CRC 4 │ 16 filesystem ID 16 │ 32 blocks of the image 8 │ 40 entries 8
//            48 CRC of the index 4 │ 52 zero 4 │ 56 time 8 │ 64 …4096 zero
//   entry    0 block 8 │ 8 place of the old contents in this file, in blocks; 0: zeros; all ones: could not be read 8
//            16 CRC of the old contents 4 │ 20 CRC of the new 4 │ 24 zero 8 │ 32 CRC of each sector of the new, 512 bytes, 8 × 4
//
// All CRCs are CRC32C, that of the header with its own field taken as zero. Both slots are listed, changed or not.
//
// (U1) The header is written last, behind a sync of all the rest, and is synced, with the directory, before the image is touched. A file
//      without one means that the image was not touched.
// (U2) It is applied only where each sector of the blocks listed holds either what the repair wrote or what was there before: an image
//      that has been mounted for writing since (then its slots are others), or another one, is refused whole.
// (U3) Repair and putting back may be cut short: a block torn at any sector satisfies U2 again.

public import Device
public import Format
import Glibc
import Memory

public struct UndoFile {
    static let magic: UInt64 = 0x006f_646e_7542_4401  // "\u{1}DBundo\0"
    static let version: UInt32 = 2
    static let entrySize = 64
    /// More than any repair changes; an index of 256 MiB.
    static let maximumEntries: UInt64 = 1 << 22
    private static let unreadable = UInt64.max

    public let path: String
    public let id: FilesystemID
    public let blockCount: UInt64
    public let time: Timestamp
    private let entries: [Entry]
    public var count: Int { entries.count }

    private struct Entry {
        let block: UInt64
        let place: UInt64
        let oldSum: UInt32
        let newSum: UInt32
        let newSectors: SectorSums
    }

    // MARK: saving

    /// Saves what `changes` will overwrite to a new file.
    public static func save(
        _ changes: Changes, to path: String, id: FilesystemID, time: Timestamp
    ) throws(RepairFailure) {
        let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw failure(path) }
        defer { close(descriptor) }
        do throws(RepairFailure) {
            try write(changes, descriptor, path, id, time)
            let parent = ParentDirectory(of: path)
            guard parent.synchronize() else { throw failure(parent.path) }
        } catch {
            unlink(path)
            throw error
        }
    }

    private static func write(
        _ changes: Changes, _ descriptor: Int32, _ path: String, _ id: FilesystemID, _ time: Timestamp
    ) throws(RepairFailure) {
        let device = changes.overlay.below
        let list = changes.list
        guard list.count <= maximumEntries else { throw RepairFailure(.undo, "\(path): \(list.count) blocks are more than an undo file may hold") }
        let indexBlocks = (list.count * entrySize + blockSize - 1) >> blockShift
        let index = AlignedBuffer(count: max(indexBlocks, 1) << blockShift)
        let page = AlignedBuffer(count: blockSize)
        var place = UInt64(1 + indexBlocks)
        for (number, change) in list.enumerated() {
            let entry = index.bytes.slice(number * entrySize, entrySize)
            entry.set(u64: change.block, at: 0)
            entry.set(u32: change.oldSum, at: 16)
            entry.set(u32: change.newSum, at: 20)
            for sector in 0..<SectorSums.count { entry.set(u32: change.newSectors[sector], at: 32 + sector * 4) }
            switch change.old {
            case .zeros: break
            case .unreadable: entry.set(u64: unreadable, at: 8)
            case .bytes:
                do throws(DeviceError) { try device.read(BlockNumber(change.block), into: page.bytes) } catch {
                    throw RepairFailure(.device, error.description)
                }
                try put(page.bytes, at: place, descriptor, path)
                entry.set(u64: place, at: 8)
                place += 1
            }
        }
        let used = index.bytes.slice(0, indexBlocks << blockShift)
        if indexBlocks > 0 { try put(used, at: 1, descriptor, path) }
        guard fsync(descriptor) == 0 else { throw failure(path) }
        page.bytes.zero()
        page.bytes.set(u64: magic, at: 0)
        page.bytes.set(u32: version, at: 8)
        page.bytes.set(u64: id.high, at: 16)
        page.bytes.set(u64: id.low, at: 24)
        page.bytes.set(u64: device.blockCount, at: 32)
        page.bytes.set(u64: UInt64(list.count), at: 40)
        page.bytes.set(u32: used.crc32c(), at: 48)
        page.bytes.set(i64: time.nanoseconds, at: 56)
        page.bytes.set(u32: page.bytes.crc32c(), at: 12)
        try put(page.bytes, at: 0, descriptor, path)
        guard fsync(descriptor) == 0 else { throw failure(path) }
    }

    private static func put(_ bytes: RawBytes, at block: UInt64, _ descriptor: Int32, _ path: String) throws(RepairFailure) {
        var done = 0
        while done < bytes.count {
            let count = pwrite(descriptor, bytes.pointer + done, bytes.count - done, off_t(block) << 12 + off_t(done))
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { throw failure(path) }
            done += count
        }
    }

    private static func failure(_ path: String) -> RepairFailure {
        RepairFailure(.undo, "\(path): \(String(cString: strerror(errno)))")
    }

    // MARK: reading

    /// Opens an undo file and checks all of it.
    public init(_ path: String) throws(RepairFailure) {
        func refused(_ why: String) -> RepairFailure { RepairFailure(.undo, "\(path): \(why)") }
        self.path = path
        let file: FileDevice
        do throws(DeviceError) { file = try FileDevice(path: path, access: .readOnly) } catch {
            throw RepairFailure(.undo, error.description)
        }
        let page = AlignedBuffer(count: blockSize)
        do throws(DeviceError) { try file.read(BlockNumber(0), into: page.bytes) } catch { throw refused("not an undo file") }
        let header = page.bytes
        guard header.u64(at: 0) == Self.magic else { throw refused("not an undo file, or one that was not finished") }
        guard header.u32(at: 8) == Self.version else { throw refused("version \(header.u32(at: 8)) is not known") }
        let sum = header.u32(at: 12)
        header.set(u32: 0, at: 12)
        guard header.crc32c() == sum else { throw refused("its header is damaged") }
        id = FilesystemID(high: header.u64(at: 16), low: header.u64(at: 24))
        blockCount = header.u64(at: 32)
        time = Timestamp(nanoseconds: header.i64(at: 56))
        let total = header.u64(at: 40)
        guard total <= blockCount, total <= file.blockCount << 6, total <= Self.maximumEntries else { throw refused("its header is damaged") }
        let indexBlocks = (Int(total) * Self.entrySize + blockSize - 1) >> blockShift
        let index = AlignedBuffer(count: max(indexBlocks, 1) << blockShift)
        let used = index.bytes.slice(0, indexBlocks << blockShift)
        if indexBlocks > 0 {
            do throws(DeviceError) { try file.read(BlockNumber(1), into: used) } catch { throw refused("it is cut short") }
        }
        guard used.crc32c() == header.u32(at: 48) else { throw refused("its index is damaged") }
        var entries: [Entry] = []
        for number in 0..<Int(total) {
            let bytes = used.slice(number * Self.entrySize, Self.entrySize)
            let entry = Entry(
                block: bytes.u64(at: 0), place: bytes.u64(at: 8), oldSum: bytes.u32(at: 16), newSum: bytes.u32(at: 20),
                newSectors: SectorSums { bytes.u32(at: 32 + $0 * 4) })
            guard entry.block < blockCount else { throw refused("its index is damaged") }
            if entry.place != 0 && entry.place != Self.unreadable {
                do throws(DeviceError) { try file.read(BlockNumber(entry.place), into: page.bytes) } catch { throw refused("it is cut short") }
                guard page.bytes.crc32c() == entry.oldSum else { throw refused("what it keeps of \(BlockNumber(entry.block)) is damaged") }
            }
            entries.append(entry)
        }
        self.entries = entries
    }

    // MARK: putting back

    /// Whether the image is the one that was repaired, and has not been changed since (U2).
    public func verify(_ device: any BlockDevice) throws(RepairFailure) {
        guard device.blockCount == blockCount else {
            throw RepairFailure(.undo, "\(path): of an image of \(blockCount) blocks; \(device.name) has \(device.blockCount)")
        }
        let other = RepairFailure(.undo, "\(path): of filesystem \(id); \(device.name) is another")
        let page = AlignedBuffer(count: blockSize)
        for (slot, block) in Superblock.slots.enumerated() where (try? device.read(block, into: page.bytes)) != nil {
            if let superblock = try? Superblock(page.bytes, slot: slot), superblock.id != id { throw other }
        }
        let file = try reopened()
        let old = AlignedBuffer(count: blockSize)
        for entry in entries {
            guard (try? device.read(BlockNumber(entry.block), into: page.bytes)) != nil else { continue }
            let sum = page.bytes.crc32c()
            if sum == entry.newSum || sum == entry.oldSum { continue }
            if entry.place != Self.unreadable { try readOld(entry, file, old.bytes) }
            let isTorn = (0..<SectorSums.count).allSatisfy { sector in
                let bytes = page.bytes.slice(sector * SectorSums.size, SectorSums.size)
                return bytes.crc32c() == entry.newSectors[sector]
                    || entry.place != Self.unreadable && bytes.equals(old.bytes.slice(sector * SectorSums.size, SectorSums.size))
            }
            guard isTorn else {
                throw RepairFailure(.undo, "\(path): \(device.name) has been changed since the repair (\(BlockNumber(entry.block)))")
            }
        }
    }

    private func reopened() throws(RepairFailure) -> FileDevice {
        do throws(DeviceError) { return try FileDevice(path: path, access: .readOnly) } catch {
            throw RepairFailure(.undo, error.description)
        }
    }

    /// What the block held before the repair.
    private func readOld(_ entry: Entry, _ file: FileDevice, _ page: RawBytes) throws(RepairFailure) {
        guard entry.place != 0 else { return page.zero() }
        do throws(DeviceError) { try file.read(BlockNumber(entry.place), into: page) } catch {
            throw RepairFailure(.undo, error.description)
        }
    }

    /// Puts back what was saved. Returns blocks restored, and those whose old contents could not be read when they were to be saved.
    public func restore(to device: any BlockDevice) throws(RepairFailure) -> (restored: Int, lost: Int) {
        try verify(device)
        let file = try reopened()
        let page = AlignedBuffer(count: blockSize)
        var restored = 0
        var lost = 0
        // The slots first: what they name now is taken away by what follows.
        let slots = Set(Superblock.slots.map(\.value))
        do {
            for group in [entries.filter { slots.contains($0.block) }, entries.filter { !slots.contains($0.block) }] {
                for entry in group {
                    guard entry.place != Self.unreadable else {
                        lost += 1
                        continue
                    }
                    try readOld(entry, file, page.bytes)
                    try device.write(BlockNumber(entry.block), page.bytes)
                    restored += 1
                }
                try device.flush()
            }
        } catch { throw error as? RepairFailure ?? RepairFailure(.device, "\(error)") }
        return (restored, lost)
    }
}
