// Explorer: runs a workload on production code (Volume and below), and looks at every state that a power failure could leave.
//
//   workload ──► events (writes, flushes) ──► windows ──► states ──► recovery ──► fsck's checker, and the model
//                                                                       │ every write of the recovery is one more window
//                                                                       └──► states ──► recovery ──► the same again (nested)
//
// A state is right when (X1) it recovers; (X2) what it holds is exactly what the model held after some prefix of the operations;
// (X3) that prefix is no shorter than what had been acknowledged, by a commit that returned, before the window began;
// (X4) the checker finds nothing in it; (X5) a crash during its recovery leads to the same; (X6) so does the loss of the newest slot.
//
// Without threads, and with clock and random numbers injected, the same workload makes the same states: workloads with a common
// beginning share them. A state that was seen before is not recovered again, but X2 and X3 are asked of it each time.

import Check
public import Device
public import Format
import Memory
import Volume

public struct Violation: Error, CustomStringConvertible {
    public let workload: [Step]
    public let what: String
    /// The disk as the crash left it, where one is to blame.
    public var state: DiskState?
    public var description: String { "\(workload.map(\.description).joined(separator: "; ")): \(what)" }
}

public struct ExplorationCounts: Sendable {
    public var workloads = 0
    /// States made, and those among them that had not been seen before.
    public var states = 0
    public var distinct = 0
    /// Of the distinct ones, those of a crash during recovery.
    public var nested = 0
    /// Steps for which the disk had no room.
    public var refusals = 0
    public init() {}

    public static func + (a: Self, b: Self) -> Self {
        var sum = a
        sum.workloads += b.workloads
        sum.states += b.states
        sum.distinct += b.distinct
        sum.nested += b.nested
        sum.refusals += b.refusals
        return sum
    }
}

public struct ExplorationLimits: Sendable {
    /// States of a window up to this many are all made.
    public var exhaustive = 256
    /// Else so many are drawn.
    public var samples = 64
    /// Random tears of each block, besides those at sector boundaries.
    public var torn = 2
    /// Crashes during recovery are explored so deep.
    public var depth = 1
    public init() {}
}

public final class Explorer {
    public static let blockCount: UInt64 = 16384
    public private(set) var counts = ExplorationCounts()
    public var limits: ExplorationLimits
    private let start: Base
    private var random: SeededRandom
    /// What recovery made of each state: the last sequence, and the digest of the tree.
    private var outcomes: [UInt64: Outcome] = [:]

    private struct Outcome {
        var reached: SequenceNumber
        var digest: Int
    }

    /// What workloads begin with.
    public enum Start: String, Sendable, CaseIterable {
        case empty
        /// Files with contents, attributes and a directory, so that a workload of few operations can do anything to them.
        case populated
        /// The same on a disk with hardly any room: some blocks beside the reserve.
        case full
    }

    public init(seed: UInt64, start kind: Start = .empty, limits: ExplorationLimits = ExplorationLimits()) throws {
        self.limits = limits
        random = SeededRandom(seed: seed)
        choosing = SeededRandom(seed: ~seed)
        let disk = TracedDisk(DiskState(), blockCount: Self.blockCount)
        try Formatter.format(
            disk,
            FormatOptions(
                label: "", id: FilesystemID(high: 1, low: 2), seed: HashSeed(k0: 3, k1: 4), nonce: 5, created: Self.time))
        guard kind != .empty else {
            start = Base(state: disk.state, model: ReferenceModel(), sequence: SequenceNumber(0))
            return
        }
        let subject = Subject(try Self.open(disk, preparing: true), ReferenceModel())
        for step in Self.population { guard try subject.perform(step) else { fatalError("\(step)") } }
        if kind == .full { try subject.fill() }
        let sequence = subject.volume.sequence
        try subject.volume.close()
        start = Base(state: disk.state, model: subject.model, sequence: sequence)
    }

    /// Where a workload begins: a disk, what it holds, and the sequence that it must not fall behind.
    private struct Base {
        var state: DiskState
        var model: ReferenceModel
        var sequence: SequenceNumber
    }

    private static let population: [Step] = [
        .create("foo"), .write("foo", at: 0, count: 5000), .makeDirectory("A"), .create("A/foo"), .write("A/foo", at: 12_288, count: 4096),
        .setXattr("foo", 10), .checkpoint, .write("foo", at: 4000, count: 200),
    ]

    private static let time = Timestamp(nanoseconds: 1_700_000_000_000_000_000)

    private static func open(_ disk: TracedDisk, preparing: Bool) throws(OpenError) -> Volume {
        var options = OpenOptions()
        options.accessTimes = .never
        options.cacheBytes = 16 << 20
        return try Volume.openAlone(
            disk, options: options, clock: { time }, random: { 99 }, preparing: preparing, onEvent: { _ in })
    }

    // MARK: one workload

    /// Runs the steps and explores the states that the last `exploring` of them can leave (all, when nil). False when a step cannot be done.
    public func explore(_ steps: [Step], last exploring: Int? = nil) throws -> Bool {
        try explore(steps, from: start, last: exploring) != nil
    }

    /// The same from a disk that may have to be recovered first. Returns one of the states that a crash could leave, by chance.
    private func explore(_ steps: [Step], from base: Base, last exploring: Int? = nil) throws -> Base? {
        let disk = TracedDisk(base.state, blockCount: Self.blockCount)
        let subject = Subject(try Self.open(disk, preparing: true), base.model)
        defer { subject.volume.abandon() }
        let first = steps.count - (exploring ?? steps.count)
        // The state after each record, and the events by which a commit had returned.
        var points = [(sequence: subject.volume.sequence, digest: subject.model.digest, model: subject.model)]
        var acknowledged: [(event: Int, sequence: SequenceNumber)] = [(0, base.sequence)]
        var begin = 0
        for (index, step) in steps.enumerated() {
            if index == first { begin = disk.events.count }
            guard try subject.perform(step) else { return nil }
            points.append((subject.volume.sequence, subject.model.digest, subject.model))
            switch step {
            case .commit, .checkpoint: acknowledged.append((disk.events.count, subject.volume.sequence))
            default: break
            }
        }
        counts.workloads += 1
        counts.refusals += subject.refusals
        let history = History(workload: steps, points: points)
        survivor = nil
        survivors = 0
        guard try ReferenceModel.digest(of: subject.volume) == subject.model.digest else {
            throw Violation(workload: steps, what: "the live state is not the model's")
        }
        try windows(disk.events, from: base.state, begin: begin) { window, event in
            let due = acknowledged.last { $0.event <= event }!.sequence
            try self.explore(window, history, due: due, depth: 0)
        }
        return survivor ?? base
    }

    /// One of the states met at depth 0, each as likely as the others.
    private var survivor: Base?
    private var survivors = 0
    private var choosing: SeededRandom

    /// The state of the model at each sequence. Housekeeping records in between change nothing that can be seen; operations that are
    /// several records may stop between them only where the model says so.
    private struct History {
        let workload: [Step]
        let points: [(sequence: SequenceNumber, digest: Int, model: ReferenceModel)]

        func point(at sequence: SequenceNumber) -> (sequence: SequenceNumber, digest: Int, model: ReferenceModel)? {
            points.last { $0.sequence <= sequence }
        }
    }

    /// Calls `body` with each window that ends at or behind event `begin`, and the event at which it began.
    private func windows(
        _ events: [TracedDisk.Event], from base: DiskState, begin: Int, _ body: (Window, Int) throws -> Void
    ) throws {
        var window = Window(base)
        var opened = 0
        for (index, event) in events.enumerated() {
            switch event {
            case .write(let block, let page): window.write(block, page)
            case .flush:
                if index >= begin && !window.isEmpty { try body(window, opened) }
                window = Window(window.flushed)
                opened = index + 1
            }
        }
        if !window.isEmpty { try body(window, opened) }
    }

    // MARK: one state

    private func explore(_ window: Window, _ history: History, due: SequenceNumber, depth: Int) throws {
        let options = depth == 0
            ? Window.Limits(exhaustive: limits.exhaustive, samples: limits.samples, torn: limits.torn)
            : Window.Limits(exhaustive: 16, samples: 4, torn: 0, coarse: true)
        var drawing = random
        try window.states(options, &drawing) { state in try self.check(state, history, due: due, depth: depth) }
        random = drawing
        // The medium may lose a slot as well (fault model): the other one and the journal hold the same.
        if depth == 0 {
            var state = window.flushed
            guard let slots = try? SlotState(TracedDisk(state, blockCount: Self.blockCount)) else { return }
            state[Superblock.slots[slots.newestSlot].value] = nil
            try check(state, history, due: due, depth: depth)
        }
    }

    private func check(_ state: DiskState, _ history: History, due: SequenceNumber, depth: Int) throws {
        counts.states += 1
        let outcome: Outcome
        if let known = outcomes[state.hash] {
            outcome = known
        } else {
            counts.distinct += 1
            if depth > 0 { counts.nested += 1 }
            outcome = try recover(state, history, due: due, depth: depth)
            outcomes[state.hash] = outcome
        }
        func fail(_ what: String) -> Violation {
            Violation(workload: history.workload, what: "\(what); recovered to sequence \(outcome.reached), due \(due)", state: state)
        }
        guard outcome.reached >= due else { throw fail("what was acknowledged is lost") }
        guard let point = history.point(at: outcome.reached), outcome.digest == point.digest else {
            throw fail("the state is not that after any prefix of the operations")
        }
        if depth == 0 {
            survivors += 1
            if choosing.next() % UInt64(survivors) == 0 { survivor = Base(state: state, model: point.model, sequence: outcome.reached) }
        }
    }

    private func recover(_ state: DiskState, _ history: History, due: SequenceNumber, depth: Int) throws -> Outcome {
        func fail(_ what: String) -> Violation { Violation(workload: history.workload, what: what, state: state) }
        let disk = TracedDisk(state, blockCount: Self.blockCount)
        // Of the slots, recovery leaves nothing to be seen.
        if let slots = try? SlotState(disk), let finding = slots.findings.first(where: { $0.code == .slotsDisagree }) {
            throw fail("the checker finds before recovery: \(finding.description)")
        }
        let volume: Volume
        do { volume = try Self.open(disk, preparing: false) } catch { throw fail("cannot be recovered: \(error)") }
        defer { volume.abandon() }
        let outcome: Outcome
        do {
            outcome = Outcome(reached: volume.recovery!.to, digest: try ReferenceModel.digest(of: volume))
        } catch { throw fail("cannot be read: \(error)") }
        let recovery = disk.events
        do { try volume.checkpointAlone(clean: true) } catch { throw fail("no checkpoint after recovery: \(error)") }
        var options = CheckOptions()
        options.verifyData = true
        let report = try Checker(disk, options: options).run()
        guard report.isClean else {
            throw fail("the checker finds: \(report.findings.prefix(3).map(\.description).joined(separator: "; "))")
        }
        if depth < limits.depth {
            // The power fails again at any write of the recovery; and of the checkpoint behind it, for one state in sixteen.
            outcomes[state.hash] = outcome
            try windows(state.hash & 15 == 0 ? disk.events : recovery, from: state, begin: 0) { window, _ in
                try self.explore(window, history, due: max(due, outcome.reached), depth: depth + 1)
            }
        }
        return outcome
    }

    // MARK: many workloads

    /// All workloads of `length` operations, with each kind of persistence behind each. `part` of `parts`: for several processes.
    public func exploreAll(length: Int, part: Int = 0, parts: Int = 1, progress: (ExplorationCounts) -> Bool) throws {
        var number = 0
        func extend(_ steps: [Step], _ left: Int) throws -> Bool {
            for operation in Step.operations {
                if left == length {
                    number += 1
                    if number % parts != part { continue }
                }
                guard isPossible(steps + [operation]) else { continue }
                for behind in Step.persistence {
                    let longer = steps + [operation] + (behind.map { [$0] } ?? [])
                    if left == 1 {
                        // What the steps before can leave has been explored with shorter workloads.
                        _ = try explore(longer, last: behind == nil ? 1 : 2)
                        guard progress(counts) else { return false }
                    } else {
                        guard try extend(longer, left - 1) else { return false }
                    }
                }
            }
            return true
        }
        _ = try extend([], length)
    }

    /// How many workloads `exploreAll` will make.
    public func count(length: Int, part: Int = 0, parts: Int = 1) -> Int {
        var number = 0
        func extend(_ steps: [Step], _ left: Int) -> Int {
            var sum = 0
            for operation in Step.operations {
                if left == length {
                    number += 1
                    if number % parts != part { continue }
                }
                guard isPossible(steps + [operation]) else { continue }
                // What makes things durable changes nothing in the model.
                sum += Step.persistence.count * (left == 1 ? 1 : extend(steps + [operation], left - 1))
            }
            return sum
        }
        return extend([], length)
    }

    /// Whether the model can do all of it: most sequences cannot even begin.
    private func isPossible(_ steps: [Step]) -> Bool {
        var model = start.model
        for step in steps { guard (try? step.change(&model)) != nil else { return false } }
        return true
    }

    /// A long random workload, checkpoints and moving horizons among it; of the states, those that the `last` steps can leave.
    /// `generations`: then a state that a crash can leave, chosen by chance, is recovered and worked on in the same way, and so on.
    public func exploreRandom(length: Int, last: Int? = nil, generations: Int = 1, seed: UInt64) throws {
        var drawing = SeededRandom(seed: seed)
        var base = start
        for _ in 0..<generations {
            var steps: [Step] = []
            var model = base.model
            while steps.count < length {
                let step: Step = switch Int.random(in: 0..<20, using: &drawing) {
                case 0: .commit
                case 1, 2: .checkpoint
                case 3, 4: .moveHorizon
                case 5: .reclaim
                default: Step.operations.randomElement(using: &drawing)!
                }
                guard (try? step.change(&model)) != nil else { continue }
                steps.append(step)
            }
            // A step for which there was no room can make a later one impossible.
            guard let next = try explore(steps, from: base, last: last) else { break }
            base = next
        }
    }
}
