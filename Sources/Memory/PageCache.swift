// PageCache: a pool of 4 KiB pages ("slots" of one arena), with a table from block number to slot.
//
//            allocate            bind(block)             evictable = true
//   free ───────────────► owned ─────────────► bound ───────────────────────► clean ──(second chance)──► free
//     ▲                     │                    │                                                        │
//     └──── release ────────┴────── release ─────┘                        evicted by `trim`, over the limit
//
// (M1) A slot is found by `lookup` exactly while it is bound.
// (M2) Only a slot marked evictable is ever taken from its holder, and only by `trim`, which is called between
//      operations: what an operation has looked at stays where it is until the operation ends.
// (M3) `limit` is soft: the arena grows within an operation, up to `reserved`, so that none is caught without memory
//      half-way. The layers above bound their unevictable slots.
//
// The arena is reserved address space; pages that were never touched cost nothing. Not thread-safe: the owner's lock.

import Glibc

public struct PageSlot: Equatable, Hashable, Sendable {
    public let index: UInt32
    @inlinable public init(_ index: UInt32) { self.index = index }
    @inlinable public static var none: PageSlot { PageSlot(.max) }
    @inlinable public var isNone: Bool { index == .max }
}

public final class PageCache: @unchecked Sendable {
    public static let pageSize = 4096

    @usableFromInline let arena: UnsafeMutableRawPointer
    @usableFromInline let info: UnsafeMutablePointer<SlotInfo>
    private let reserved: Int
    public let limit: Int
    /// Slots ever touched: all in use or on the free list lie below it.
    public private(set) var high = 0
    private var freeHead: UInt32 = .max
    @usableFromInline var freeCount = 0
    private var hand = 0

    // Open addressing with linear probing; an entry is a slot index + 1, zero means empty.
    @usableFromInline var table: UnsafeMutablePointer<UInt32>
    @usableFromInline var tableMask: Int
    @usableFromInline var bound = 0

    @usableFromInline struct SlotInfo {
        @usableFromInline var block: UInt64 = .max  // the bound block, or next free slot
        @usableFromInline var tag: UInt64 = 0
        @usableFromInline var flags: UInt8 = 0
    }

    @usableFromInline static let flagUsed: UInt8 = 1
    @usableFromInline static let flagBound: UInt8 = 2
    @usableFromInline static let flagEvictable: UInt8 = 4
    @usableFromInline static let flagReferenced: UInt8 = 8

    /// A pool that keeps to `limit` pages while it can, and never passes `reserved`.
    public init(limit: Int, reserved: Int = 4 << 20) {
        self.limit = Swift.max(limit, 16)
        self.reserved = reserved
        func map(_ bytes: Int) -> UnsafeMutableRawPointer {
            let address = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
            precondition(address != MAP_FAILED, "cannot reserve address space")
            return address!
        }
        arena = map(reserved * Self.pageSize)
        // Look-ups jump about in nodes; with small pages each jump costs a walk of the page table as well. A cache that would not fill
        // a few huge pages does without.
        if limit >= 4096 { madvise(arena, reserved * Self.pageSize, MADV_HUGEPAGE) }
        info = map(reserved * MemoryLayout<SlotInfo>.stride).bindMemory(to: SlotInfo.self, capacity: reserved)
        tableMask = 1023
        table = .allocate(capacity: 1024)
        table.initialize(repeating: 0, count: 1024)
    }

    deinit {
        munmap(arena, reserved * Self.pageSize)
        munmap(info, reserved * MemoryLayout<SlotInfo>.stride)
        table.deallocate()
    }

    /// Pages in use (bound or owned).
    @inlinable public var used: Int { high - freeCount }

    @inlinable @inline(__always) public func page(_ slot: PageSlot) -> RawBytes {
        precondition(Int(slot.index) < high)
        return RawBytes(base: arena + Int(slot.index) * 4096, count: 4096)
    }

    /// A word that the owner may keep with a slot; zero when allocated.
    @inlinable @inline(__always) public func tag(_ slot: PageSlot) -> UInt64 {
        precondition(Int(slot.index) < high)
        return info[Int(slot.index)].tag
    }
    @inlinable @inline(__always) public func setTag(_ slot: PageSlot, _ value: UInt64) {
        precondition(Int(slot.index) < high)
        info[Int(slot.index)].tag = value
    }

    /// Whether the slot is in use, for walks over `0..<high`.
    public func isUsed(_ slot: PageSlot) -> Bool { info[Int(slot.index)].flags & Self.flagUsed != 0 }

    public func block(_ slot: PageSlot) -> UInt64? {
        let entry = info[Int(slot.index)]
        return entry.flags & Self.flagBound != 0 ? entry.block : nil
    }

    // MARK: slots

    /// A slot of the caller's own, contents undefined.
    public func allocate() -> PageSlot {
        let index: UInt32
        if freeHead != .max {
            index = freeHead
            freeHead = UInt32(truncatingIfNeeded: info[Int(index)].block)
            freeCount -= 1
        } else {
            precondition(high < reserved, "page cache exhausted")
            index = UInt32(high)
            high += 1
        }
        info[Int(index)] = SlotInfo(block: .max, tag: 0, flags: Self.flagUsed)
        return PageSlot(index)
    }

    /// Gives a slot back, unbinding it first.
    public func release(_ slot: PageSlot) {
        let index = Int(slot.index)
        precondition(info[index].flags & Self.flagUsed != 0, "released twice")
        unbind(slot)
        info[index].flags = 0
        info[index].block = UInt64(freeHead)
        freeHead = slot.index
        freeCount += 1
    }

    /// Makes the slot the page of `block`, which must not be bound.
    public func bind(_ slot: PageSlot, to block: UInt64) {
        precondition(info[Int(slot.index)].flags & Self.flagBound == 0)
        if (bound + 1) * 2 > tableMask { growTable() }
        info[Int(slot.index)].block = block
        info[Int(slot.index)].flags |= Self.flagBound
        insert(slot.index, block)
        bound += 1
    }

    public func unbind(_ slot: PageSlot) {
        let index = Int(slot.index)
        guard info[index].flags & Self.flagBound != 0 else { return }
        remove(info[index].block, slot.index)
        info[index].flags &= ~(Self.flagBound | Self.flagEvictable)
        bound -= 1
    }

    /// Lets `allocate` take the (bound) slot when memory is short, or forbids it.
    public func setEvictable(_ slot: PageSlot, _ evictable: Bool) {
        if evictable {
            precondition(info[Int(slot.index)].flags & Self.flagBound != 0)
            info[Int(slot.index)].flags |= Self.flagEvictable | Self.flagReferenced
        } else {
            info[Int(slot.index)].flags &= ~Self.flagEvictable
        }
    }

    @inlinable @inline(__always) public func lookup(_ block: UInt64) -> PageSlot {
        var position = Self.hash(block) & tableMask
        while true {
            let entry = table[position]
            if entry == 0 { return .none }
            if info[Int(entry - 1)].block == block {
                info[Int(entry - 1)].flags |= Self.flagReferenced
                return PageSlot(entry - 1)
            }
            position = (position + 1) & tableMask
        }
    }

    // MARK: table

    @inlinable @inline(__always) static func hash(_ block: UInt64) -> Int {
        Int(truncatingIfNeeded: (block &* 0x9E37_79B9_7F4A_7C15) >> 24)
    }

    private func insert(_ index: UInt32, _ block: UInt64) {
        var position = Self.hash(block) & tableMask
        while table[position] != 0 {
            precondition(info[Int(table[position] - 1)].block != block, "block bound twice")
            position = (position + 1) & tableMask
        }
        table[position] = index + 1
    }

    private func remove(_ block: UInt64, _ index: UInt32) {
        var hole = Self.hash(block) & tableMask
        while table[hole] != index + 1 { hole = (hole + 1) & tableMask }
        // Backward-shift deletion keeps probing sequences unbroken.
        var next = (hole + 1) & tableMask
        while table[next] != 0 {
            let home = Self.hash(info[Int(table[next] - 1)].block) & tableMask
            if (next &- home) & tableMask >= (next &- hole) & tableMask {
                table[hole] = table[next]
                hole = next
            }
            next = (next + 1) & tableMask
        }
        table[hole] = 0
    }

    private func growTable() {
        let old = table
        let oldCount = tableMask + 1
        tableMask = oldCount * 2 - 1
        table = .allocate(capacity: oldCount * 2)
        table.initialize(repeating: 0, count: oldCount * 2)
        for position in 0..<oldCount where old[position] != 0 {
            insert(old[position] - 1, info[Int(old[position] - 1)].block)
        }
        old.deallocate()
    }

    /// Evicts clean pages, second chance first, until the limit is kept or a bounded walk of the clock found no more. Call
    /// it between operations.
    @inlinable @inline(__always) public func trim() {
        if used > limit { evict() }
    }

    @usableFromInline func evict() {
        // Bounded: when nearly everything is dirty, growing is cheaper than searching.
        var steps = 512 + 4 * (used - limit)
        while used > limit && steps > 0 {
            steps -= 1
            hand = hand + 1 < high ? hand + 1 : 0
            let flags = info[hand].flags
            guard flags & Self.flagEvictable != 0 else { continue }
            if flags & Self.flagReferenced != 0 {
                info[hand].flags &= ~Self.flagReferenced
            } else {
                release(PageSlot(UInt32(hand)))
            }
        }
    }
}
