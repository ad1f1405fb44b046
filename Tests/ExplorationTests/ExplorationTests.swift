// Goal: P1 and P2 in every state that a crash could leave of small workloads.
// Method: Sources/Exploration. Here all workloads of one operation, with few tears; Tools/crash-explore goes further.

import Exploration
import Testing

@Suite struct ExplorationTests {
    @Test func allWorkloadsOfOneOperation() throws {
        var limits = ExplorationLimits()
        limits.torn = 0
        limits.depth = 0
        let explorer = try Explorer(seed: 1, limits: limits)
        try explorer.exploreAll(length: 1) { _ in true }
        #expect(explorer.counts.workloads == 18)
        #expect(explorer.counts.distinct > 200)
    }

    /// Work goes on after a crash, and on a disk with hardly any room.
    @Test(arguments: [Explorer.Start.empty, .populated, .full]) func generations(start: Explorer.Start) throws {
        var limits = ExplorationLimits()
        limits.exhaustive = 16
        limits.samples = 4
        limits.torn = 0
        limits.depth = 0
        let explorer = try Explorer(seed: 7, start: start, limits: limits)
        for seed in 0..<3 as Range<UInt64> { try explorer.exploreRandom(length: 10, generations: 3, seed: seed) }
        #expect(explorer.counts.workloads >= 6)
        #expect(explorer.counts.distinct > 100)
    }
}
