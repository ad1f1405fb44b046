// Goal: a medium that does wrong, in each way of the fault model (Docs/TESTING.md). What it says that it did wrong costs nothing that was
// acknowledged; what it did wrong in silence is found out: an error, never other bytes than were written.
// Method: a seeded workload beside a model, on a disk that goes wrong by chance; then the power fails, and a mount on a disk that does no
// wrong any more is compared with the model. A failure prints the fault's line, which replays it.

import Device
import Format
import Memory
import TestSupport
import Testing

@testable import Volume

@Suite struct FaultTests {
    /// Each kind often, now and then, and rarely.
    private static func faults(_ kinds: [DiskFaults.Kind]) -> [DiskFaults] {
        kinds.flatMap { kind in seeds.map { DiskFaults(kind, oneIn: [6, 40, 200][Int($0 % 3)], seed: $0) } }
    }
    private static let reported = faults(DiskFaults.Kind.allCases.filter(\.isReported))
    private static let silent = faults(DiskFaults.Kind.allCases.filter { !$0.isReported })

    /// What a run came to before the power failed.
    private struct Run {
        var work: Workload
        var committed: SequenceNumber
        var failure: String?
    }

    private func isError(_ error: any Error) -> Bool {
        switch error as? OperationError {
        case .io, .readOnly, .noSpace: true
        default: false
        }
    }

    /// Works until the volume has had enough of its disk, or the steps are done. Ends without closing.
    private func work(_ disk: SimulatedDisk, _ faults: DiskFaults) throws -> (Run, Volume) {
        var work = Workload(seed: faults.seed)
        var random = SeededRandom(seed: faults.seed ^ 0xFA17)
        let events = EventLog()
        // Something to be read, by a volume that has nothing in memory.
        let before = try openVolume(disk, seed: faults.seed)
        for _ in 0..<150 { try work.step(before) }
        try before.close()
        let volume = try openVolume(disk, events: events, seed: faults.seed &+ 1)
        var committed = volume.committedSequence
        disk.inject(faults)
        for _ in 0..<250 {
            do {
                try work.step(volume)
                switch Int.random(in: 0..<12, using: &random) {
                case 0:
                    try volume.commit()
                    committed = volume.committedSequence
                case 1: try volume.checkpointNow()
                default: break
                }
            } catch where isError(error) {
                // A step that was refused has not happened, unless the volume is at its end.
                if volume.lock.withLock({ volume.failureText }) != nil { break }
            }
        }
        #expect(faults.oneIn > 6 || !disk.incidents.isEmpty, "\(faults): nothing went wrong")
        return (Run(work: work, committed: committed, failure: events.failures.first), volume)
    }

    @Test(arguments: reported) func whatTheMediumReportsLosesNothing(faults: DiskFaults) throws {
        let disk = try makeDisk()
        let (run, volume) = try work(disk, faults)
        disk.inject(nil)
        // What can be read is right, also after the end of writing.
        let live = differences(volume, run.work.model)
        #expect(live.wrong == [], "\(faults): live: \(live.wrong.first ?? "")")
        var random = SeededRandom(seed: faults.seed)
        let after = disk.crash(&random)
        volume.abandon()
        let recovered = try openVolume(after)
        let reached = recovered.recovery!.to
        #expect(reached >= run.committed, "\(faults): \(recovered.recoveryReport ?? "clean"); \(run.failure ?? "no failure")")
        let found = try Model.of(recovered)
        #expect(found.canonical == run.work.model(at: reached).canonical, "\(faults): state at \(reached)")
        try recovered.close()
    }

    @Test(arguments: silent) func whatTheMediumDoesInSilenceIsFoundOut(faults: DiskFaults) throws {
        let disk = try makeDisk()
        let (run, volume) = try work(disk, faults)
        let live = differences(volume, run.work.model)
        #expect(live.wrong == [], "\(faults): live: \(live.wrong.first ?? "")")
        disk.inject(nil)
        var random = SeededRandom(seed: faults.seed)
        let after = disk.crash(&random)
        volume.abandon()
        let events = EventLog()
        let recovered: Volume
        do { recovered = try openVolume(after, events: events) } catch {
            // Reported; it takes fsck. Only if something had gone wrong.
            #expect(!disk.incidents.isEmpty, "\(faults): \(error)")
            return
        }
        let reached = recovered.recovery!.to
        let model = run.work.model(at: reached)
        let found = differences(recovered, model)
        #expect(found.wrong == [], "\(faults): at \(reached): \(found.wrong.first ?? "")")
        // A frame that never came, or that rotted, at the very end cannot be told from one that was torn (DESIGN.md).
        let isEndInDoubt = disk.incidents.contains { $0.magic == magicFrame || $0.kind == .rot || $0.kind == .misdirectedWrite }
        #expect(reached >= run.committed || isEndInDoubt, "\(faults): \(recovered.recoveryReport ?? "clean")")
        recovered.abandon()
    }

    /// Where the volume says something else than the model. An error is no difference.
    private func differences(_ volume: Volume, _ model: Model) -> (wrong: [String], unreadable: Int) {
        var wrong: [String] = []
        var unreadable = 0
        func ask(_ what: String, _ body: () throws -> Bool) {
            do { if try !body() { wrong.append(what) } } catch OperationError.notFound { wrong.append("\(what): not there") } catch {
                unreadable += 1
            }
        }
        for (path, number) in model.names.sorted(by: { $0.key < $1.key }) {
            let file = model.files[number]!
            ask("mode of \(path)") { try volume.find(path).item.mode == file.mode }
            switch file.mode & 0o170000 {
            case 0o040000: ask("names in \(path)") { try volume.names(path) == model.children(path).map { String($0.split(separator: "/").last!) }.sorted() }
            case 0o120000: ask("target of \(path)") { try volume.readLink(try volume.find(path).inode) { $0.array } == file.target }
            default: ask("contents of \(path)") { try volume.contents(path) == file.bytes }
            }
            for (name, value) in file.xattrs {
                ask("attribute of \(path)") {
                    let inode = try volume.find(path).inode
                    return try name.withRawBytes { (name) throws(OperationError) in try volume.xattr(inode, name) { $0.array } } == value
                }
            }
        }
        ask("names in the root") { try volume.names("") == model.children("").sorted() }
        return (wrong, unreadable)
    }
}
