// SpaceMap: which blocks are used, one bit a block, and where to put new ones.
//
// The image is divided into zones of 4 MiB. A zone with anything in it belongs to one class of lifetime (journal, nodes,
// data, space state); an empty one to whoever asks first. Only when no zone of the right class and no empty one is
// left are classes mixed.
//
// (A1) A bit is set while live state, history, a pending list or the journal needs the block.
// (A2) `free` and `zoneFree` always equal the number of clear bits.
// (A3) A region is marked dirty by every change of its bits since `snapshot` last took it.
// (A4) Only zones that are backed are given out: those for which the host has promised room (Backing.swift). `backedFree`
//      counts the clear bits in them. Nothing is promised or taken back on disk: a mount asks again.
//
// Bits, not extents: their size is fixed (32 KiB a GiB) however scattered the free space is, a change costs a word, and a
// checkpoint writes only the bitmap blocks of regions that changed. Not thread-safe: the volume's lock.

public import Format
public import Memory

public struct BlockRun: Hashable, Sendable {
    public var start: BlockNumber
    public var count: UInt64
    @inlinable public init(start: BlockNumber, count: UInt64) {
        self.start = start
        self.count = count
    }
    @inlinable public var end: UInt64 { start.value + count }
}

public struct SpaceError: Error, Sendable, CustomStringConvertible {
    public let description: String
    init(_ description: String) { self.description = description }
}

public enum SpaceClass: UInt8, Sendable {
    case journal = 1
    case node = 2
    case data = 3
    case space = 4
}

/// A region's bits at one moment, for the checkpoint to write.
public struct RegionBits: Sendable {
    public var words: [UInt64]
    public var classes: [UInt8]

    public mutating func set(_ bit: Int) { words[bit >> 6] |= 1 << UInt64(bit & 63) }
    public mutating func clear(_ bit: Int) { words[bit >> 6] &= ~(1 << UInt64(bit & 63)) }

    public func store(_ page: RawBytes) {
        page.zero()
        for zone in 0..<Region.zones { Region.setZoneClass(page, zone, classes[zone]) }
        for (index, word) in words.enumerated() { page.set(u64: word, at: Region.bits + index * 8) }
    }

    /// Clear bits. Those beyond the end of the image are always set.
    public var free: Int { words.reduce(0) { $0 + 64 - $1.nonzeroBitCount } }
}

public final class SpaceMap: @unchecked Sendable {
    public let blockCount: UInt64
    public let regions: Int
    private var words: [UInt64]
    private var zoneFree: [Int32]
    private var zoneClass: [UInt8]
    private var zoneBacked: [Bool]
    /// Unused blocks.
    public private(set) var free: Int
    /// Unused blocks that can be given out.
    public private(set) var backedFree: Int
    private var dirty: [Bool]
    // Where each class last allocated: a block.
    private var cursor = [UInt64](repeating: 0, count: 8)

    static let wordsPerRegion = Region.blocks / 64
    static let wordsPerZone = Region.zoneBlocks / 64

    /// Everything used; `load` fills in each region.
    public init(blockCount: UInt64) {
        self.blockCount = blockCount
        regions = Int((blockCount + UInt64(Region.blocks) - 1) / UInt64(Region.blocks))
        words = [UInt64](repeating: .max, count: regions * Self.wordsPerRegion)
        zoneFree = [Int32](repeating: 0, count: regions * Region.zones)
        zoneClass = [UInt8](repeating: 0, count: regions * Region.zones)
        zoneBacked = [Bool](repeating: true, count: regions * Region.zones)
        dirty = [Bool](repeating: false, count: regions)
        free = 0
        backedFree = 0
    }

    /// A new filesystem's map: all blocks free but those beyond the end; every region dirty.
    public static func empty(blockCount: UInt64) -> SpaceMap {
        let map = SpaceMap(blockCount: blockCount)
        for region in 0..<map.regions { map.dirty[region] = true }
        map.setBits(BlockNumber(0), blockCount, used: false)
        return map
    }

    // MARK: regions

    public func load(region: Int, _ page: RawBytes) throws(SpaceError) {
        let firstBlock = UInt64(region) * UInt64(Region.blocks)
        for index in 0..<Self.wordsPerRegion {
            words[region * Self.wordsPerRegion + index] = page.u64(at: Region.bits + index * 8)
        }
        for zone in 0..<Region.zones {
            let number = region * Region.zones + zone
            zoneClass[number] = Region.zoneClass(page, zone)
            var count = 0
            for index in 0..<Self.wordsPerZone { count += 64 - words[number * Self.wordsPerZone + index].nonzeroBitCount }
            zoneFree[number] = Int32(count)
            free += count
            if zoneBacked[number] { backedFree += count }
        }
        if firstBlock + UInt64(Region.blocks) > blockCount {
            for block in max(blockCount, firstBlock)..<(firstBlock + UInt64(Region.blocks)) where !bit(block) {
                throw SpaceError("bitmap of region \(region): blocks beyond the end of the image are marked free")
            }
        }
    }

    /// The bits of every region changed since the last call.
    public func snapshot() -> [Int: RegionBits] {
        var result: [Int: RegionBits] = [:]
        for region in 0..<regions where dirty[region] {
            result[region] = bits(of: region)
            dirty[region] = false
        }
        return result
    }

    /// Marks regions as changed again, when a checkpoint that took their snapshot did not come to pass.
    public func markDirty(_ region: Int) { dirty[region] = true }

    public func bits(of region: Int) -> RegionBits {
        RegionBits(
            words: Array(words[region * Self.wordsPerRegion..<(region + 1) * Self.wordsPerRegion]),
            classes: Array(zoneClass[region * Region.zones..<(region + 1) * Region.zones]))
    }

    // MARK: bits

    @inline(__always) private func bit(_ block: UInt64) -> Bool { words[Int(block >> 6)] & (1 << (block & 63)) != 0 }

    public func isUsed(_ block: BlockNumber) -> Bool { block.value >= blockCount || bit(block.value) }

    private func setBits(_ start: BlockNumber, _ count: UInt64, used: Bool) {
        var block = start.value
        let end = start.value + count
        while block < end {
            let word = Int(block >> 6)
            let first = block & 63
            let length = min(64 - first, end - block)
            let mask = (length == 64 ? UInt64.max : (1 << length) - 1) << first
            if used { words[word] |= mask } else { words[word] &= ~mask }
            let zone = word / Self.wordsPerZone
            let change = Int32(length)
            zoneFree[zone] += used ? -change : change
            if zoneBacked[zone] { backedFree += used ? -Int(length) : Int(length) }
            if !used && zoneFree[zone] == Int32(Region.zoneBlocks) { zoneClass[zone] = 0 }
            dirty[word / Self.wordsPerRegion] = true
            block += length
        }
        free += used ? -Int(count) : Int(count)
    }

    private func all(_ run: BlockRun, used: Bool) -> Bool {
        guard run.count <= blockCount, run.start.value <= blockCount - run.count else { return false }
        var block = run.start.value
        while block < run.end {
            let first = block & 63
            let length = min(64 - first, run.end - block)
            let mask = (length == 64 ? UInt64.max : (1 << length) - 1) << first
            guard words[Int(block >> 6)] & mask == (used ? mask : 0) else { return false }
            block += length
        }
        return true
    }

    /// Takes particular blocks, as replay does. They must all be free (invariant 7).
    public func claim(_ run: BlockRun, _ kind: SpaceClass) throws(SpaceError) {
        guard all(run, used: false) else { throw SpaceError("\(run.count) blocks from \(run.start) are claimed but not free") }
        setBits(run.start, run.count, used: true)
        adopt(run, kind)
    }

    /// Gives blocks back. They must all be used.
    public func release(_ run: BlockRun) throws(SpaceError) {
        guard all(run, used: true) else { throw SpaceError("\(run.count) blocks from \(run.start) are freed but not all used") }
        setBits(run.start, run.count, used: false)
    }

    private func adopt(_ run: BlockRun, _ kind: SpaceClass) {
        for zone in (run.start.value / UInt64(Region.zoneBlocks))...((run.end - 1) / UInt64(Region.zoneBlocks))
        where zoneClass[Int(zone)] == 0 { zoneClass[Int(zone)] = kind.rawValue }
    }

    // MARK: backing

    /// From now on only zones named to `markBacked` are given out.
    public func withdrawBacking() {
        for zone in zoneBacked.indices { zoneBacked[zone] = false }
        backedFree = 0
    }

    public func markBacked(_ zones: Range<Int>) {
        for zone in zones where !zoneBacked[zone] {
            zoneBacked[zone] = true
            backedFree += Int(zoneFree[zone])
        }
    }

    /// The next zones in a row from `from` on, at most `limit`, that are not backed and have room; with `inUse`, instead those that
    /// hold something.
    func unbackedZones(from: Int, limit: Int, inUse: Bool = false) -> Range<Int>? {
        func wanted(_ zone: Int) -> Bool { !zoneBacked[zone] && (inUse ? zoneClass[zone] != 0 : zoneFree[zone] > 0) }
        guard from < zoneBacked.count, let first = (from..<zoneBacked.count).first(where: wanted) else { return nil }
        var end = first + 1
        while end < zoneBacked.count, end - first < limit, wanted(end) { end += 1 }
        return first..<end
    }

    /// The blocks of `zones` that the image has.
    func blocks(of zones: Range<Int>) -> BlockRun {
        let start = UInt64(zones.lowerBound) * UInt64(Region.zoneBlocks)
        return BlockRun(
            start: BlockNumber(start), count: min(UInt64(zones.upperBound) * UInt64(Region.zoneBlocks), blockCount) - start)
    }

    // MARK: allocation

    /// Takes up to `wanted` blocks in a row for `kind`, from where it last stopped; nil when nothing backed is free.
    public func allocate(_ kind: SpaceClass, wanted: UInt64) -> BlockRun? {
        guard backedFree > 0 else { return nil }
        var position = cursor[Int(kind.rawValue)]
        let current = Int(position / UInt64(Region.zoneBlocks))
        if position == 0 || zoneClass[current] != kind.rawValue || !zoneBacked[current] {
            guard let zone = nextZone(kind, after: current) else { return nil }
            position = UInt64(zone) * UInt64(Region.zoneBlocks)
        }
        while true {
            let zone = Int(position / UInt64(Region.zoneBlocks))
            let zoneEnd = min(UInt64(zone + 1) * UInt64(Region.zoneBlocks), blockCount)
            if let start = firstFree(position, zoneEnd) {
                let end = firstUsed(start, min(start + wanted, zoneEnd))
                let run = BlockRun(start: BlockNumber(start), count: end - start)
                setBits(run.start, run.count, used: true)
                adopt(run, kind)
                // A cursor at the zone's end would name the next zone, which may be another's.
                cursor[Int(kind.rawValue)] = min(end, zoneEnd - 1)
                return run
            }
            guard let next = nextZone(kind, after: zone) else { return nil }
            position = UInt64(next) * UInt64(Region.zoneBlocks)
        }
    }

    /// Takes a chunk: `count` blocks at a multiple of `count`, which divides a zone.
    public func allocateChunk(_ count: UInt64) -> BlockNumber? {
        func find(_ accept: (Int) -> Bool) -> BlockNumber? {
            for zone in 0..<zoneFree.count where zoneBacked[zone] && zoneFree[zone] >= Int32(count) && accept(zone) {
                for part in 0..<(UInt64(Region.zoneBlocks) / count) {
                    let run = BlockRun(
                        start: BlockNumber(UInt64(zone) * UInt64(Region.zoneBlocks) + part * count), count: count)
                    if all(run, used: false) { return run.start }
                }
            }
            return nil
        }
        let journal = SpaceClass.journal.rawValue
        guard let start = find({ zoneClass[$0] == journal }) ?? find({ zoneClass[$0] == 0 }) ?? find({ _ in true }) else {
            return nil
        }
        setBits(start, count, used: true)
        adopt(BlockRun(start: start, count: count), .journal)
        return start
    }

    /// A zone to go on in: of this class and a quarter free, else empty, else of this class at all, else any; the journal's last, for
    /// its chunks need whole free runs.
    private func nextZone(_ kind: SpaceClass, after: Int) -> Int? {
        let zones = zoneFree.count
        var partly: Int?
        var empty: Int?
        var mixed: Int?
        var journal: Int?
        for step in 1...zones {
            let zone = (after + step) % zones
            let room = zoneFree[zone]
            guard room > 0, zoneBacked[zone] else { continue }
            if zoneClass[zone] == kind.rawValue {
                if room >= Int32(Region.zoneBlocks / 4) { return zone }
                if partly == nil { partly = zone }
            } else if zoneClass[zone] == 0 {
                if empty == nil { empty = zone }
            } else if zoneClass[zone] == SpaceClass.journal.rawValue {
                if journal == nil || zoneFree[journal!] < room { journal = zone }
            } else if mixed == nil || zoneFree[mixed!] < room {
                mixed = zone
            }
        }
        return empty ?? partly ?? mixed ?? journal
    }

    private func firstFree(_ from: UInt64, _ end: UInt64) -> UInt64? {
        var block = from
        while block < end {
            let rest = ~words[Int(block >> 6)] >> (block & 63)
            if rest != 0 {
                block += UInt64(rest.trailingZeroBitCount)
                return block < end ? block : nil
            }
            block = (block | 63) + 1
        }
        return nil
    }

    private func firstUsed(_ from: UInt64, _ end: UInt64) -> UInt64 {
        var block = from
        while block < end {
            let rest = words[Int(block >> 6)] >> (block & 63)
            if rest != 0 { return min(block + UInt64(rest.trailingZeroBitCount), end) }
            block = (block | 63) + 1
        }
        return end
    }
}
