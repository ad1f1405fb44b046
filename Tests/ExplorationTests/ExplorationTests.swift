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
}
