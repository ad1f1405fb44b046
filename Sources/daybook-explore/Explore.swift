// daybook-explore: crash exploration from the command line (Tools/crash-explore).

import ArgumentParser
import Device
import Exploration
import Glibc

@main struct Explore: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "crash-explore", abstract: "Looks at every state that a crash could leave of small workloads.")

    @Option(help: "Operations of each workload, all of them in every order.") var length = 2
    @Option(help: "Random workloads instead, of so many steps.") var random: Int?
    @Option(help: "Of random workloads, explore so many of the last steps.") var last: Int?
    @Option(help: "Random workloads follow one another, each on what a crash left of the one before, so many times.") var generations = 1
    @Option(help: "What workloads begin with: empty, populated or full.") var start = "empty"
    @Option(help: "Of the moments drawn and of random workloads.") var seed: UInt64?
    @Option(help: "End after so many seconds.") var seconds = 60.0
    @Option(help: "Crashes during recovery are explored so deep.") var depth = 1
    @Option(help: "Where to write the image that a violation was found in.") var keep: String?
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
        guard let start = Explorer.Start(rawValue: start) else { throw ValidationError("--start \(start)") }
        let explorer = try Explorer(seed: seed, start: start, limits: limits)
        if random == nil { print("\(explorer.count(length: length, part: numbers[0], parts: numbers[1])) workloads of \(length) operations") }
        fflush(nil)
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
                    try explorer.exploreRandom(length: random, last: last, generations: generations, seed: next)
                    next += 1
                }
            } else {
                try explorer.exploreAll(length: length, part: numbers[0], parts: numbers[1]) { goesOn($0) }
            }
        } catch let violation as Violation {
            show(explorer.counts, now() - began)
            print("VIOLATION \(violation)")
            if let keep, let state = violation.state {
                let file = open(keep, O_RDWR | O_CREAT | O_TRUNC, 0o600)
                guard file >= 0, ftruncate(file, off_t(Explorer.blockCount) << 12) == 0 else { throw ValidationError("--keep \(keep): cannot be written") }
                close(file)
                try state.store(try FileDevice(path: keep, access: .readWrite))
            }
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
                + "\(Int(Double(counts.states) / max(seconds, 0.001))) a second, \(Int(Double(counts.distinct) / max(seconds, 0.001))) distinct"
                + (counts.refusals > 0 ? "; \(counts.refusals) steps refused for want of room" : ""))
        fflush(nil)
    }
}
