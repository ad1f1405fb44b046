// Repair: what can be put right without any doubt: a damaged slot from the valid one, the copy of identity and geometry.
//
// (X1) A repair writes to no block that anything valid lies in.

public import Device
public import Format
import Memory

public enum Repair {
    /// Rewrites the slot that is not valid as one generation older than the other: the same state, so that whichever is read first is
    /// right.
    public static func slot(_ state: SlotState, _ device: any BlockDevice) throws(DeviceError) {
        let slot = 1 - state.newestSlot
        precondition(state.slots[slot] == nil, "the slot is valid")
        var copy = state.newest
        copy.generation = state.newest.generation > 0 ? state.newest.generation - 1 : 0
        let page = AlignedBuffer(count: blockSize)
        copy.store(page.bytes, slot: slot)
        try device.write(Superblock.slots[slot], page.bytes)
        try device.flush()
    }

    /// Marks both slots, the older first, as those of a filesystem that is damaged, or takes the mark away.
    public static func mark(_ state: SlotState, _ device: any BlockDevice, isDamaged: Bool) throws(DeviceError) {
        let page = AlignedBuffer(count: blockSize)
        for slot in [1 - state.newestSlot, state.newestSlot] {
            guard var superblock = state.slots[slot] else { continue }
            superblock.flags &= ~Superblock.flagDamaged
            if isDamaged { superblock.flags |= Superblock.flagDamaged }
            superblock.store(page.bytes, slot: slot)
            try device.write(Superblock.slots[slot], page.bytes)
            try device.flush()
        }
    }

    /// Writes the copy of identity and geometry, without roots, to the last block.
    public static func identity(of superblock: Superblock, _ device: any BlockDevice) throws(DeviceError) {
        let page = AlignedBuffer(count: blockSize)
        superblock.identity.store(page.bytes, slot: 2)
        try device.write(BlockNumber(superblock.blockCount - 1), page.bytes)
        try device.flush()
    }
}
