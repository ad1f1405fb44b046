// daybook-explore: crash exploration from the command line (Tools/crash-explore).

import ArgumentParser
import Exploration
import Glibc

@main struct Explore: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "crash-explore", abstract: "Looks at every state that a crash could leave of small workloads.")

    @Option(help: "Operations of each workload, all of them in every order.") var length = 2
    @Option(help: "Random workloads instead, of so many steps.") var random: Int?
    @Option(help: "Of the moments drawn and of random workloads.") var seed: UInt64?
    @Option(help: "End after so many seconds.") var seconds = 60.0
    @Option(help: "Crashes during recovery are explored so deep.") var depth = 1
    @Option(help: "Which part of the workloads, of how many: 0/2.") var part = "0/1"

    func run() throws {
        let numbers = part.split(separator: "/").compactMap { Int($0) }
        guard numbers.count == 2, numbers[1] > 0, (0..<numbers[1]).contains(numbers[0]) else { throw ValidationError("--part \(part)") }
        var generator = SystemRandomNumberGenerator()
        let seed = seed ?? generator.next() >> 32
        print("seed \(seed)")
        fflush(nil)
        var limits = ExplorationLimits()
        limits.depth = depth
        let explorer = try Explorer(seed: seed, limits: limits)
        let began = now()
        var shown = began
        func goesOn(_ counts: ExplorationCounts) -> Bool {
            let time = now()
            if time - shown > 10 {
                shown = time
                show(counts, time - began)
            }
            return time - began < seconds
        }
        do {
            if let random {
                var next = seed
                while goesOn(explorer.counts) {
                    try explorer.exploreRandom(length: random, seed: next)
                    next += 1
                }
            } else {
                try explorer.exploreAll(length: length, part: numbers[0], parts: numbers[1]) { goesOn($0) }
            }
        } catch let violation as Violation {
            show(explorer.counts, now() - began)
            print("VIOLATION \(violation)")
            throw ExitCode(1)
        }
        show(explorer.counts, now() - began)
    }

    private func now() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    private func show(_ counts: ExplorationCounts, _ seconds: Double) {
        print(
            "\(counts.workloads) workloads, \(counts.states) states, \(counts.distinct) of them distinct (\(counts.nested) of crashes during recovery), "
                + "\(Int(Double(counts.states) / max(seconds, 0.001))) a second, \(Int(Double(counts.distinct) / max(seconds, 0.001))) distinct")
        fflush(nil)
    }
}
