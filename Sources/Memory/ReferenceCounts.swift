// ReferenceCounts: how often the kernel was told of each inode. It may know of all there are: two million cost 10 MiB here, a sixth
// of what a dictionary of them would take.
//
// Inode numbers are given out one after the other, so numbers that are known have neighbours that are known: sixteen share one entry.
//
// (R1) A group exists exactly while one of its sixteen counts is above zero.
// (R2) A count above 65,535 has the rest in `overflow`, as multiples of 32,768 taken off when the sixteen bits are full.

public struct ReferenceCounts: Sendable {
    private var groups: [UInt64: SIMD16<UInt16>] = [:]
    private var overflow: [UInt64: UInt64] = [:]
    private static let step: UInt64 = 1 << 15

    public init() {}

    /// References held to `inode`.
    @inline(__always) public func count(_ inode: UInt64) -> UInt64 {
        guard let group = groups[inode >> 4] else { return 0 }
        let low = group[Int(inode & 15)]
        // Only a count that was full once has a rest, and it is above zero for as long as it has.
        return low < Self.step ? UInt64(low) : UInt64(low) + (overflow.isEmpty ? 0 : overflow[inode, default: 0])
    }

    @inline(__always) public func isHeld(_ inode: UInt64) -> Bool {
        guard let group = groups[inode >> 4] else { return false }
        return group[Int(inode & 15)] != 0
    }

    /// One reference more.
    @inline(__always) public mutating func add(_ inode: UInt64) {
        if !Self.increment(&groups[inode >> 4, default: .zero], Int(inode & 15)) { spill(inode) }
    }

    /// False when the sixteen bits are full.
    @inline(__always) private static func increment(_ group: inout SIMD16<UInt16>, _ lane: Int) -> Bool {
        guard group[lane] < .max else { return false }
        group[lane] += 1
        return true
    }

    @inline(never) private mutating func spill(_ inode: UInt64) {
        overflow[inode, default: 0] += Self.step
        groups[inode >> 4]![Int(inode & 15)] -= UInt16(Self.step) - 1
    }

    /// Takes back up to `count` references. True when there were some and there are none now.
    public mutating func remove(_ inode: UInt64, _ count: UInt64) -> Bool {
        guard var group = groups[inode >> 4] else { return false }
        let lane = Int(inode & 15)
        guard group[lane] != 0 else { return false }
        let rest = overflow.isEmpty ? 0 : overflow[inode, default: 0]
        let held = UInt64(group[lane]) + rest
        let left = held - min(held, count)
        // As much as fits in the sixteen bits stays there.
        let spilled = left <= UInt64(UInt16.max) ? 0 : (left - UInt64(UInt16.max) + Self.step - 1) / Self.step * Self.step
        if rest != spilled { overflow[inode] = spilled == 0 ? nil : spilled }
        group[lane] = UInt16(left - spilled)
        groups[inode >> 4] = group == .zero ? nil : group
        return left == 0
    }

    public mutating func removeAll() { self = ReferenceCounts() }
}
