// Room: what writes can still take. For those who let data pile up before it is handed over here, where it could be refused.

import Device
import Format
import Memory
import Space

extension Volume {
    /// Bytes that writes can take before one is refused, journal and tree included, with history as it is: what is free besides the
    /// reserve, as far as the host backs it or has space to. Zero for a volume that is read-only.
    public func room() -> UInt64 {
        let below = device.spaceBelow()
        return lock.withLock {
            guard let space, failureText == nil else { return 0 }
            let unbacked = UInt64(max(space.free - space.map.backedFree, 0))
            let free = UInt64(space.map.backedFree) + min(unbacked, below)
            let kept = UInt64(limits.reserve + spokenFor)
            return free > kept ? (free - kept) << UInt64(blockShift) : 0
        }
    }

    /// Has history give way already when less than `bytes` are free besides the reserve, not only when little is.
    public func keepFree(_ bytes: UInt64) {
        lock.withLock { lowWater = max(limits.lowWater, limits.reserve + Int(clamping: bytes >> UInt64(blockShift))) }
    }

    /// Has history give way now, if it is time to (`keepFree`), though nothing has been asked for: what was deleted may have become
    /// part of it since that was last tried.
    public func makeRoomIfLow() {
        lock.withLock {
            guard let space, space.free < lowWater else { return }
            roomQuiet = false
            checkpointWanted = true
            lock.broadcast()
        }
    }
}
