// Backing: room on the host for what an image file with holes (a thin device) is going to hold.
//
//   not backed ──back: the host promises the zone's blocks (fallocate)──► backed: may be given out
//
// A write that the host refuses for want of space would come after the operation was acknowledged and would end the
// volume. So blocks are given out of backed zones only, and operations are admitted by what is free there: a full
// host is a full filesystem (ENOSPC), and the reserve with which it can still delete, checkpoint and be
// unmounted was backed before.
//
// (B1) Zones that hold something count as backed only once they have been asked for as well: a copy of an image may have
//      lost the space behind its free blocks.
// (B2) The host is asked without the lock.
// (B3) Backing is not recorded. After a crash, or at the next mount, the host is asked again; it says yes to what
//      it gave before.

import Device
import Format
import Glibc
public import Memory

extension Space {
    /// Zones the host is asked for at a time: 64 MiB.
    private static let step = 16
    /// Zones it may refuse before it counts as full; more may be tried later.
    private static let patience = 4096

    /// At mount: nothing is backed but what holds something already, as far as the host has it.
    public func backWhatIsUsed(lock: Lock) throws(Failure) {
        guard device.isThin else { return }
        map.withdrawBacking()
        var from = 0
        while let zones = map.unbackedZones(from: from, limit: .max, inUse: true) {
            if try ask(zones, lock: lock) {
                from = zones.upperBound
            } else {
                // Some of it is missing: find out which.
                for zone in zones { _ = try ask(zone..<zone + 1, lock: lock) }
                from = zones.upperBound
            }
        }
    }

    /// Asks the host for room until `wanted` blocks are free and backed, or it has no more to give (`hostIsFull`). Without
    /// the lock.
    public func back(atLeast wanted: Int, lock: Lock) throws(Failure) {
        guard device.isThin else { return }
        var refused = 0
        var wrapped = false
        var limit = Self.step
        while true {
            let zones: Range<Int>? = lock.withLock {
                guard map.backedFree < wanted, !hostIsFull else { return nil }
                if let zones = map.unbackedZones(from: backingCursor, limit: limit) { return zones }
                backingCursor = 0
                guard !wrapped else {
                    hostIsFull = refused > 0
                    return nil
                }
                wrapped = true
                return map.unbackedZones(from: 0, limit: limit)
            }
            guard let zones else { return }
            if try ask(zones, lock: lock) {
                limit = Self.step
                lock.withLock { backingCursor = zones.upperBound }
            } else if zones.count > 1 {
                limit = 1
            } else {
                refused += 1
                lock.withLock {
                    backingCursor = zones.upperBound
                    if refused >= Self.patience { hostIsFull = true }
                }
            }
        }
    }

    /// The host may have room again.
    public func tryHostAgain() { hostIsFull = false }

    /// Unused blocks as far as is known: those the host does not have do not count once it has said so.
    public var free: Int { hostIsFull ? map.backedFree : map.free }

    private func ask(_ zones: Range<Int>, lock: Lock) throws(Failure) -> Bool {
        let run = lock.withLock { map.blocks(of: zones) }
        do throws(DeviceError) { try device.provide(run.start, count: run.count) } catch {
            guard error.errno == ENOSPC || error.errno == EDQUOT || error.errno == EFBIG else { throw .device(error) }
            return false
        }
        lock.withLock { map.markBacked(zones) }
        return true
    }
}
