// Goal: the kernel's references are counted exactly, however many there are to one inode; else an inode would be reclaimed that
// somebody still holds, or never.

import Device
import Memory
import Testing

@Suite struct ReferenceCountsTests {
    /// Random additions and removals against a dictionary, among neighbours and strangers.
    @Test(arguments: 0..<4 as Range<UInt64>) func agreesWithADictionary(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var counts = ReferenceCounts()
        var model: [UInt64: UInt64] = [:]
        var agrees = true
        for _ in 0..<100_000 {
            let inode = random.next() % 4 == 0 ? random.next() % 1_000_000 : random.next() % 40
            if random.next() % 3 < 2 {
                counts.add(inode)
                model[inode, default: 0] += 1
            } else {
                let count = random.next() % 5 == 0 ? random.next() % 4000 : 1
                let held = model[inode, default: 0]
                let left = held - min(held, count)
                model[inode] = left == 0 ? nil : left
                let isGone = counts.remove(inode, count)
                agrees = agrees && isGone == (held > 0 && left == 0)
            }
            agrees = agrees && counts.isHeld(inode) == (model[inode] != nil) && counts.count(inode) == model[inode, default: 0]
        }
        #expect(agrees, "seed \(seed)")
    }

    /// One file may be looked up more often than sixteen bits can tell.
    @Test(arguments: [1, 40_000, 65_535, 65_536, 100_000, 400_000] as [UInt64]) func manyToOne(total: UInt64) {
        var counts = ReferenceCounts()
        for _ in 0..<total { counts.add(17) }
        counts.add(18)
        #expect(counts.count(17) == total)
        let isGoneAtHalf = counts.remove(17, total / 2)
        #expect(!isGoneAtHalf)
        #expect(counts.count(17) == total - total / 2)
        let isGone = counts.remove(17, total - total / 2)
        #expect(isGone && !counts.isHeld(17) && counts.isHeld(18))
        let goesTwice = counts.remove(17, 1)
        #expect(!goesTwice)
        let isOtherGone = counts.remove(18, 5)
        #expect(isOtherGone && !counts.isHeld(18))
    }
}
