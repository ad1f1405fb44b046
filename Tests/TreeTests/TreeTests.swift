// Goal: the tree holds what was put into it, through every order of insertion and removal, freezing, writing and rereading.
// Method: random operations beside a sorted dictionary; the tree is written out and read back again and again, so that every node
// passes NodeLayout.validate as it will on a real disk. A failure prints its seed.

import Device
import Format
import Memory
import Synchronization
import Testing

@testable import Tree

private let id = FilesystemID(high: 1, low: 2)

/// A tree on a simulated disk whose nodes go to ever new blocks.
private final class Bench {
    let disk = SimulatedDisk(blockCount: 1 << 20)
    var tree: Tree
    var nextBlock: UInt64 = 1
    var checkpoint: UInt64 = 1

    init() { tree = Tree(cache: PageCache(limit: 64, reserved: 1 << 16), device: disk, kind: .main, id: id) }

    /// Writes the tree out; `between` runs while it is frozen.
    func write(between: () throws -> Void = {}) throws {
        let frozen = tree.freeze()
        try between()
        let blocks = (0..<UInt64(frozen.count)).map { BlockNumber(nextBlock + $0) }
        nextBlock += UInt64(frozen.count)
        try frozen.write(tree, to: blocks, birth: SequenceNumber(checkpoint)) { (block, bytes) throws(DeviceError) in
            try disk.write(block, bytes)
        }
        checkpoint += 1
        tree.finish(frozen)
        tree.cache.trim()
    }

    /// Forgets everything in memory.
    func reopen() throws {
        try write()
        tree = Tree(
            cache: PageCache(limit: 64, reserved: 1 << 16), device: disk, kind: .main, id: id, root: tree.root, level: tree.level)
    }

    func items() throws -> [Key: [UInt8]] {
        var result: [Key: [UInt8]] = [:]
        var last: Key?
        try tree.scan(from: Key.first, mapping: { $0 }) { (key, value) throws(TreeError) -> Bool in
            if let last { #expect(last < key, "order") }
            last = key
            result[key] = value.array
            return true
        }
        return result
    }
}

/// A disk whose host keeps copies of every block, which may have become garbage; the medium below is sound.
private final class StaleCache: BlockDevice {
    let medium: SimulatedDisk
    let blockCount: UInt64
    let isReadOnly = false
    let name = "stale"
    /// Whether what is asked for counts as in the host's memory (else it is had by `readCached`).
    let isResident: Bool
    private let asked = Mutex(0)
    /// How often the medium itself was asked.
    var mediumReads: Int { asked.withLock { $0 } }

    init(_ medium: SimulatedDisk, isResident: Bool) {
        self.medium = medium
        self.isResident = isResident
        blockCount = medium.blockCount
    }

    func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) {
        asked.withLock { $0 += 1 }
        try medium.read(block, into: bytes)
    }

    func readCached(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) {
        try medium.read(block, into: bytes)
        bytes.set(u64: bytes.u64(at: 2048) ^ 1, at: 2048)
    }

    func readResident(_ block: BlockNumber, into bytes: RawBytes) -> Bool {
        guard isResident else { return false }
        return (try? readCached(block, into: bytes)) != nil
    }

    func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) { try medium.write(block, bytes) }
    func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) { try medium.write(block, gathering: pages) }
    func flush() throws(DeviceError) { try medium.flush() }
}

@Suite struct TreeTests {
    /// What the host's page cache holds may be wrong (another program wrote to the image, memory went bad): that is damage only if the
    /// medium has it too. Nothing wrong is believed on the way.
    @Test(arguments: [true, false]) func garbageInTheHostsCacheIsReadAgain(isResident: Bool) throws {
        let bench = Bench()
        for number in 0..<4000 as Range<UInt64> {
            let value = try bench.tree.put(Key(InodeNumber(number), .inode, 0), count: 100)
            value.zero()
            value.set(u64: number, at: 0)
        }
        try bench.write()
        let host = StaleCache(bench.disk, isResident: isResident)
        let tree = Tree(
            cache: PageCache(limit: 64, reserved: 1 << 16), device: host, kind: .main, id: id, root: bench.tree.root,
            level: bench.tree.level)
        for number in 0..<4000 as Range<UInt64> {
            #expect(try tree.find(Key(InodeNumber(number), .inode, 0))?.u64(at: 0) == number)
        }
        #expect(host.mediumReads > 4000 * 100 / blockSize, "every node was asked of the medium")

        // Now the medium has it too.
        let root = bench.tree.root.address
        let page = AlignedBuffer(count: blockSize)
        try bench.disk.read(root, into: page.bytes)
        page.bytes.set(u64: page.bytes.u64(at: 2048) ^ 2, at: 2048)
        try bench.disk.write(root, page.bytes)
        let damaged = Tree(
            cache: PageCache(limit: 64, reserved: 1 << 16), device: host, kind: .main, id: id, root: bench.tree.root,
            level: bench.tree.level)
        #expect(throws: TreeError.self) { try damaged.find(Key(InodeNumber(1), .inode, 0)) }
    }

    @Test(arguments: Array(1...12) as [UInt64]) func agreesWithADictionary(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let bench = Bench()
        var model: [Key: [UInt8]] = [:]
        // Few keys, many, or in clusters; values empty, small or of the longest kind.
        let spread: UInt64 = [200, 5000, 1 << 40][Int(seed % 3)]
        func randomKey() -> Key {
            Key(InodeNumber(UInt64.random(in: 1...max(1, spread / 50), using: &random)), .entry, UInt64.random(in: 0..<spread, using: &random))
        }
        func change() throws {
            let growing = (bench.checkpoint / 8) % 2 == 0
            if Int.random(in: 0..<10, using: &random) < (growing ? 7 : 3) {
                let key = randomKey()
                let length = [0, 0, 8, 40, 128, 552, NodeLayout.longestValue].randomElement(using: &random)!
                let value = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ model.count) }
                try bench.tree.put(key, count: length).copy(value)
                model[key] = value
            } else {
                // Front to back, as a directory is emptied, or anywhere.
                let key = Bool.random(using: &random) ? model.keys.min() : model.keys.randomElement(using: &random)
                guard let key else { return }
                #expect(try bench.tree.remove(key))
                model[key] = nil
            }
        }
        for round in 0..<60 {
            for _ in 0..<60 { try change() }
            if round % 3 == 0 { try bench.write(between: { for _ in 0..<20 { try change() } }) }
            if round % 10 == 9 { try bench.reopen() }
            if round % 5 == 4 {
                let found = try bench.items()
                #expect(found == model, "seed \(seed) round \(round)")
            }
            for _ in 0..<10 {
                let key = randomKey()
                #expect(try bench.tree.find(key)?.array == model[key], "seed \(seed)")
                #expect(try bench.tree.next(key)?.key == model.keys.filter { !($0 < key) }.min(), "seed \(seed)")
                #expect(try bench.tree.previous(key)?.key == model.keys.filter { !(key < $0) }.max(), "seed \(seed)")
            }
        }
        try bench.reopen()
        #expect(try bench.items() == model, "seed \(seed)")
    }

    /// An empty value once lay at the heap's start; when the value behind it went, it was left outside of the heap, and the node
    /// could not be read back.
    @Test func emptyValuesStayInsideTheHeap() throws {
        let bench = Bench()
        for number in 0..<20 as Range<UInt64> {
            try bench.tree.put(Key(InodeNumber(1), .entry, number), count: 40).zero()
            _ = try bench.tree.put(Key(.none, .orphan, number), count: 0)
        }
        for number in (0..<20 as Range<UInt64>).reversed() { try bench.tree.remove(Key(InodeNumber(1), .entry, number)) }
        try bench.reopen()
        #expect(try bench.items().count == 20)
    }

    /// A look-up that misses a node reads it without the lock. When somebody else has changed the node by then, its old block is brought
    /// in for nothing; and that must not be in the way of the node that gets the block in its next life.
    @Test func aNodeReadTooLateIsNotInTheWay() throws {
        let bench = Bench()
        try bench.tree.put(Key(.root, .inode), count: 8).set(u64: 1, at: 0)
        try bench.reopen()
        let tree = bench.tree
        let old = tree.root
        let buffer = AlignedBuffer(count: blockSize)
        try tree.readMissing(old, level: 0, into: buffer.bytes)
        try tree.put(Key(.root, .inode), count: 8).set(u64: 2, at: 0)
        tree.adopt(old, buffer.bytes)
        try bench.write()
        // The old root's block has been given up and is used again.
        try tree.put(Key(.root, .inode), count: 8).set(u64: 3, at: 0)
        bench.nextBlock = old.address.value
        try bench.write()
        #expect(tree.root.address == old.address)
        #expect(try tree.find(Key(.root, .inode))?.u64(at: 0) == 3)
    }
}
