// Goal: P1 (prefix consistency), P2 (what was committed is there), P5 (past points open) under random operations.
// Method: a seeded workload on a simulated disk, mirrored in a model that knows nothing of the structures; power cuts at
// random moments, also during recovery; the state found must be the model's after some prefix of the operations, at least up
// to the last commit. A failure prints its seed; `DAYBOOK_TEST_SEED` runs one seed alone.

import Device
import Format
import Memory
import TestSupport
import Testing
import Volume

@Suite struct CrashTests {
    @Test(arguments: seeds) func everyCrashLeavesAPrefix(seed: UInt64) throws {
        var work = Workload(seed: seed)
        var random = SeededRandom(seed: seed ^ 0xABCD)
        let clock = TestClock()
        var disk = try makeDisk()
        for round in 0..<6 {
            let events = EventLog()
            let volume = try openVolume(disk, clock: clock, events: events, seed: seed &* 31 &+ UInt64(round))
            var committed = volume.committedSequence
            for _ in 0..<Int.random(in: 1..<120, using: &random) {
                try work.step(volume)
                switch Int.random(in: 0..<25, using: &random) {
                case 0:
                    try volume.commit()
                    committed = volume.committedSequence
                case 1 where round % 2 == 1: try volume.checkpointNow()
                default: break
                }
            }
            #expect(events.failures == [], "seed \(seed) round \(round)")
            let live = try Model.of(volume)
            #expect(live.canonical == work.model.canonical, "seed \(seed) round \(round): live state")
            var after = disk.crash(&random)
            volume.abandon()
            // The power fails again while the first recovery runs, or just after it.
            if Bool.random(using: &random) {
                after.failsAfter = Int.random(in: 0..<6, using: &random)
                let second = try? openVolume(after, clock: clock, seed: seed &* 77)
                let third = after.crash(&random)
                second?.abandon()
                after = third
            }
            let recovered = try openVolume(after, clock: clock, seed: seed &* 13 &+ UInt64(round))
            let reached = recovered.recovery!.to
            #expect(reached >= committed, "seed \(seed) round \(round): \(recovered.recoveryReport ?? "clean")")
            let found = try Model.of(recovered)
            #expect(found.canonical == work.model(at: reached).canonical, "seed \(seed) round \(round): state at \(reached)")
            work.rewind(to: reached)
            try recovered.close()
            disk = after
        }
        // Any retained point opens, and is what it was.
        let image = try Image(disk)
        for _ in 0..<10 {
            let entry = work.history.filter { $0.sequence >= image.superblock.horizon }.randomElement(using: &random)!
            let past = try openVolume(disk, mode: .at(.sequence(entry.sequence)), clock: clock)
            let found = try Model.of(past)
            #expect(found.canonical == work.model(at: entry.sequence).canonical, "seed \(seed): view at \(entry.sequence)")
        }
    }

    /// The journal's last frame was whole, but not the data that it names: a recovery cut it off. Then a program tried again, the same
    /// bytes went to the same block, and the power failed before their frame. The old frame would be right again now; but what the
    /// first recovery has shown to somebody is final (V1, R2).
    @Test func whatWasCutOffStaysCutOff() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        try volume.make("f")
        try volume.commit()
        let reached = volume.committedSequence
        let bytes = pattern(blockSize, 7)
        try volume.write("f", bytes)
        try volume.commit()
        volume.abandon()

        let lost = disk.copy()
        let page = AlignedBuffer(count: blockSize)
        var home: BlockNumber?
        for block in 0..<disk.blockCount {
            try disk.read(BlockNumber(block), into: page.bytes)
            if page.bytes.array == bytes { home = BlockNumber(block) }
        }
        let block = try #require(home)
        lost.corrupt(block) { $0 = [UInt8](repeating: 0, count: blockSize) }
        let first = try openVolume(lost)
        #expect(first.recovery?.to == reached)
        #expect(try first.contents("f") == [])
        first.abandon()

        lost.corrupt(block) { $0 = bytes }
        let second = try openVolume(lost)
        #expect(second.recovery?.to == reached)
        #expect(try second.contents("f") == [])
        try second.close()
    }
}
