// DataPages: data blocks in memory, by home block.
//
//   whole write:  staged ──► dirty ──(written before the frame that names it is flushed)──► clean ──► evicted
//   patch:        unposted ──(changed in place)──► unposted ──freeze──► posting ──(posted by the checkpoint)──► clean
//
// (G1) A dirty page is written to its home before the flush of the frame that names it, whatever happens to the file
//      meanwhile: history may need it.
// (G2) An unposted page is changed only while its extent has that home; once frozen, a further patch takes a new home.
// (G3) An unposted page whose home is given up is dropped: views of that time rebuild it from the records.
// (G4) After a failed flush the clean pages written since the last good one may be the only copy: from there on they stay.

public import Format
public import Memory

public final class DataPages: @unchecked Sendable {
    public let cache: PageCache
    /// Dirty pages in the order in which their records were appended.
    public private(set) var dirty: [PageSlot] = []
    public private(set) var unposted = 0

    // In the cache's tag word, below the CRC; and of a clean page above them the round in which it was written, 0 when that is of no
    // concern.
    private static let flagDirty: UInt64 = 1
    private static let flagUnposted: UInt64 = 2
    private static let flagPosting: UInt64 = 4
    private static let rounds: UInt64 = 1 << 29
    private func round(_ slot: PageSlot) -> UInt64 { cache.tag(slot) >> 3 & (Self.rounds - 1) }
    /// One for each flush that was begun for data.
    private var round: UInt64 = 1

    public init(limit: Int) { cache = PageCache(limit: limit) }

    public func crc(_ slot: PageSlot) -> UInt32 { UInt32(truncatingIfNeeded: cache.tag(slot) >> 32) }
    private func set(_ slot: PageSlot, _ flags: UInt64, crc: UInt32) { cache.setTag(slot, UInt64(crc) << 32 | flags) }
    private func flags(_ slot: PageSlot) -> UInt64 { cache.tag(slot) & 7 }

    public func isUnposted(_ slot: PageSlot) -> Bool { flags(slot) & Self.flagUnposted != 0 }
    /// May a patch change the page in place?
    public func isOpen(_ slot: PageSlot) -> Bool { flags(slot) == Self.flagUnposted }

    /// A staged page (owned, filled, CRC known) becomes the dirty page of `home`.
    public func addDirty(_ slot: PageSlot, home: BlockNumber, crc: UInt32) {
        // A block that was freed and given out again may still have its old page here.
        forget(home)
        cache.bind(slot, to: home.value)
        set(slot, Self.flagDirty, crc: crc)
        dirty.append(slot)
    }

    /// A page for a patched block: a new one, contents undefined.
    public func addUnposted(home: BlockNumber) -> PageSlot {
        forget(home)
        let slot = cache.allocate()
        cache.bind(slot, to: home.value)
        set(slot, Self.flagUnposted, crc: 0)
        unposted += 1
        return slot
    }

    public func setCRC(_ slot: PageSlot, _ crc: UInt32) { set(slot, flags(slot), crc: crc) }

    /// A block read from its home and verified.
    public func addClean(home: BlockNumber, crc: UInt32, _ bytes: RawBytes) {
        guard cache.lookup(home.value).isNone else { return }
        let slot = cache.allocate()
        cache.page(slot).copy(bytes)
        cache.bind(slot, to: home.value)
        set(slot, 0, crc: crc)
        cache.setEvictable(slot, true)
    }

    /// Whether nothing is to be written to the block any more. Only a record, or a dead list, that is not ours can offer another.
    public func mayTake(_ home: BlockNumber) -> Bool {
        let slot = cache.lookup(home.value)
        return slot.isNone || flags(slot) == 0
    }

    /// A clean page left from a former life of `home` goes.
    private func forget(_ home: BlockNumber) {
        let old = cache.lookup(home.value)
        if !old.isNone {
            precondition(flags(old) == 0, "block given out while its page is still to be written")
            cache.release(old)
        }
    }

    /// Whether the block's home holds what it should, or soon will without any more ado: nothing is to be posted.
    public func isSettled(_ home: BlockNumber) -> Bool {
        let slot = cache.lookup(home.value)
        return slot.isNone || flags(slot) & (Self.flagUnposted | Self.flagPosting) == 0
    }

    /// The blocks are known to be at home: pages of theirs that a replay rebuilt need not be posted, and may not be patched.
    public func settle(_ start: BlockNumber, _ count: UInt64) {
        guard unposted > 0 else { return }
        for block in start.value..<(start.value + count) {
            let slot = cache.lookup(block)
            if !slot.isNone && isOpen(slot) {
                markClean(slot)
                unposted -= 1
            }
        }
    }

    /// The blocks are no longer part of any file: unposted pages of theirs go (G3).
    public func giveUp(_ start: BlockNumber, _ count: UInt64) {
        guard unposted > 0 else { return }
        for block in start.value..<(start.value + count) {
            let slot = cache.lookup(block)
            if !slot.isNone && isOpen(slot) {
                cache.release(slot)
                unposted -= 1
            }
        }
    }

    // MARK: writing out

    /// Takes the list of dirty pages; the caller writes them and then calls `written`.
    public func takeDirty() -> [PageSlot] {
        defer { dirty.removeAll(keepingCapacity: true) }
        return dirty
    }

    /// The pages are at home, but only the next flush makes that certain.
    public func written(_ slots: [PageSlot]) {
        for slot in slots {
            cache.setTag(slot, UInt64(crc(slot)) << 32 | round << 3)
            cache.setEvictable(slot, true)
        }
    }

    /// The pages are at home, and flushed.
    public func flushed(_ slots: [PageSlot]) {
        for slot in slots { markClean(slot) }
    }

    /// A flush begins: what is written from now on is another one's.
    public func beginRound() { round = round % (Self.rounds - 1) + 1 }

    /// A flush has failed, or never will be: what was written since the last good one is kept (G4).
    public func keepUnflushed() {
        // The failed round, and the one begun since.
        let before = round == 1 ? Self.rounds - 1 : round - 1
        for index in 0..<cache.high {
            let slot = PageSlot(UInt32(index))
            guard cache.isUsed(slot), cache.block(slot) != nil, flags(slot) == 0 else { continue }
            if self.round(slot) == round || self.round(slot) == before { cache.setEvictable(slot, false) }
        }
    }

    /// Unposted pages become the checkpoint's to post.
    public func freeze() -> [PageSlot] {
        guard unposted > 0 else { return [] }
        var slots: [PageSlot] = []
        slots.reserveCapacity(unposted)
        for index in 0..<cache.high {
            let slot = PageSlot(UInt32(index))
            if cache.isUsed(slot), cache.block(slot) != nil, isOpen(slot) {
                set(slot, Self.flagUnposted | Self.flagPosting, crc: crc(slot))
                slots.append(slot)
            }
        }
        unposted = 0
        return slots
    }

    public func posted(_ slots: [PageSlot]) {
        for slot in slots { markClean(slot) }
    }

    private func markClean(_ slot: PageSlot) {
        set(slot, 0, crc: crc(slot))
        cache.setEvictable(slot, true)
    }
}
