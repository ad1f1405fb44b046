// Goal: a repair puts right all that the checker can find, or leaves the image alone; it says what is lost; it can be undone; losing power
// in the middle of it costs nothing.
// Method: the damage of DamageTests, and single blocks of the medium turned to noise; each repaired in memory, written (whole, or until the
// power fails), checked again, undone and compared. A repair that claims to lose nothing must leave the tree's digest as it was.

import Check
import Device
import Digest
import Format
import Glibc
import Memory
@testable import Rebuild
import TestSupport
import Testing
import Tree
import Volume

func makeRepairer(_ disk: any BlockDevice) -> Repairer {
    let clock = TestClock()
    return Repairer(disk, options: CheckOptions(), environment: .init(clock: { clock.now() }, random: { 4711 }))
}

func treeDigest(_ disk: any BlockDevice) throws -> [UInt8] {
    try TreeDigest().digest(ViewSource(try Image(disk).view(at: nil).view, from: .root))
}

/// All blocks but those of zeros.
func contents(_ disk: any BlockDevice) -> [UInt64: [UInt8]] {
    var result: [UInt64: [UInt8]] = [:]
    let page = AlignedBuffer(count: blockSize)
    let zeros = AlignedBuffer(count: blockSize)
    for block in 0..<disk.blockCount where (try? disk.read(BlockNumber(block), into: page.bytes)) != nil && !page.bytes.equals(zeros.bytes) {
        result[block] = page.bytes.array
    }
    return result
}

func described(_ outcome: RepairOutcome) -> String {
    outcome.lines.map { ($0.isLoss ? "lost: " : "") + $0.text }.joined(separator: "\n  ")
}

private let baseDigest = try! treeDigest(baseImage)
private nonisolated(unsafe) var undoNumber = 0
private let undoLock = Lock()
func undoPath() -> String {
    undoLock.withLock {
        undoNumber += 1
        return "/tmp/daybook-test-\(getpid())-\(undoNumber)-undo"
    }
}

/// Writes the repair, checks the result and undoes it.
func expectRepair(_ disk: SimulatedDisk, _ outcome: RepairOutcome, digest: [UInt8]?) throws {
    let before = contents(disk)
    let undo = undoPath()
    defer { unlink(undo) }
    let changes = try Changes(outcome.overlay)
    try UndoFile.save(changes, to: undo, id: outcome.superblock.id, time: Timestamp(nanoseconds: 1))
    try changes.write(to: disk)
    let report = try Checker(disk).run()
    #expect(report.isClean, "\(report.findings.map(\.description))")
    if let digest {
        let same = try treeDigest(disk) == digest
        #expect(same, "said to lose nothing: \(described(outcome))")
    }
    let used = disk.copy()
    let volume = try openVolume(used)
    try volume.make("after the repair")
    try volume.close()
    #expect(try Checker(used).run().isClean)
    // What has been used since is not undone, save for what does not know of it.
    if changes.list.contains(where: { $0.block == Superblock.slots[0].value || $0.block == Superblock.slots[1].value }) {
        #expect(throws: RepairFailure.self) { try UndoFile(undo).restore(to: used) }
    }
    _ = try UndoFile(undo).restore(to: disk)
    let same = contents(disk) == before
    #expect(same, "the undo file leads elsewhere")
}

@Suite struct RepairTests {
    /// The journal's own loss, and what is not in it.
    private static let lossy: Set<FindingCode> = [.frameUnreadable, .recordMalformed, .journalContinues]
    private static let data: Set<FindingCode> = [.dataDamaged, .tailNotZero]

    @Test(arguments: plantings) func whatIsPlantedIsRepaired(planting: Planting) throws {
        let disk = baseImage.copy()
        try planting.plant(try Editor(disk))
        let before = contents(disk)
        let repairer = makeRepairer(disk)
        let outcome = try #require(try repairer.plan(), "\(repairer.attempts)")
        let untouched = contents(disk) == before
        #expect(untouched, "a plan has written to the image")
        #expect(outcome.losesSomething == Self.lossy.contains(planting.code), "\(described(outcome))")
        try expectRepair(disk, outcome, digest: Self.data.contains(planting.code) ? nil : baseDigest)
    }

    @Test(arguments: plantings.filter { (401...417).contains($0.code.rawValue) || $0.code == .accessControlList || (501...514).contains($0.code.rawValue) })
    func itemsThatContradictEachOtherAreMended(planting: Planting) throws {
        // As if there were neither history nor journal to make the tree from.
        let disk = baseImage.copy()
        try planting.plant(try Editor(disk))
        let repairer = makeRepairer(disk)
        repairer.allows = { $0 == "E" }
        let outcome = try #require(try repairer.plan(), "\(repairer.attempts)")
        #expect(outcome.lines.count > 1)
        let report = try Checker(outcome.overlay).run()
        #expect(report.isClean, "\(report.findings.map(\.description))")
    }

    @Test(arguments: [FindingCode.slotDamaged, .bitmapDamaged, .spaceNodeDamaged, .nodeDamaged, .frameUnreadable, .deadBlockInUse, .inodeBlocks])
    func powerMayFailOnTheWay(code: FindingCode) throws {
        let damaged = baseImage.copy()
        try plantings.first { $0.code == code }!.plant(try Editor(damaged))
        let outcome = try #require(try makeRepairer(damaged).plan())
        let changes = try Changes(outcome.overlay)
        let whole = damaged.copy()
        let began = whole.operations
        try Changes(relayed(outcome.overlay, whole)).write(to: whole)
        let total = whole.operations - began
        var random = SeededRandom(seed: UInt64(code.rawValue))
        for operation in Set((0..<4).map { _ in Int.random(in: 0...total, using: &random) } + [total - 1, total - 2, total - 3, total - 4]) where operation >= 0 {
            let disk = damaged.copy()
            disk.failsAfter = disk.operations + operation
            try? changes.write(to: disk)
            let crashed = disk.crash(&random)
            let repairer = makeRepairer(crashed)
            let again = try #require(try repairer.plan(), "after \(operation) of \(total): \(repairer.attempts)")
            #expect(again.losesSomething == outcome.losesSomething || !again.losesSomething, "after \(operation) of \(total): \(described(again))")
            let same = try treeDigest(again.overlay) == baseDigest
            #expect(same, "after \(operation) of \(total): \(described(again))")
        }
    }

    /// The mark of damage is put into both slots, one after the other, in place. Whenever the power fails, one of them is whole and says
    /// of the state what it said; fsck makes the other one from it.
    @Test(arguments: [true, false]) func powerMayFailWhileTheMarkIsWritten(isDamaged: Bool) throws {
        var random = SeededRandom(seed: isDamaged ? 1 : 2)
        let start = baseImage.copy()
        try Repair.mark(try SlotState(start), start, isDamaged: !isDamaged)
        var seen: Set<[Bool?]> = []
        for trial in 0..<60 {
            let disk = start.copy()
            disk.failsAfter = disk.operations + trial % 5
            let finished = (try? Repair.mark(try SlotState(disk), disk, isDamaged: isDamaged)) != nil
            #expect(finished == (trial % 5 == 4))
            let crashed = disk.crash(&random)
            let slots = try SlotState(crashed)
            let marks = slots.slots.map { $0.map { $0.flags & Superblock.flagDamaged != 0 } }
            seen.insert(marks)
            if finished { #expect(marks == [isDamaged, isDamaged]) }
            let report = try Checker(crashed).run()
            #expect(Set(report.findings.map(\.code)).isSubset(of: [.slotDamaged, .markedDamaged]), "\(report.findings.map(\.description))")
            #expect(try treeDigest(crashed) == baseDigest)
            if let outcome = try makeRepairer(crashed).plan() { #expect(!outcome.losesSomething, "\(described(outcome))") }
        }
        let half: Set<[Bool?]> = [[true, false], [false, true]]
        #expect(seen.isSuperset(of: [[isDamaged, isDamaged], [!isDamaged, !isDamaged]]) && !seen.isDisjoint(with: half), "\(seen)")
    }

    /// The same changes over another copy of the device.
    private func relayed(_ overlay: OverlayDevice, _ device: any BlockDevice) throws -> OverlayDevice {
        let other = OverlayDevice(device)
        let page = AlignedBuffer(count: blockSize)
        for block in overlay.writtenBlocks {
            try overlay.read(BlockNumber(block), into: page.bytes)
            try other.write(BlockNumber(block), page.bytes)
        }
        return other
    }

    @Test func blocksTurnedToNoise() throws {
        // Every block that is not file data, and some that are: one at a time, and the whole of the repair each time.
        var random = SeededRandom(seed: 5)
        let blocks = contents(baseImage).keys.sorted()
        var repaired = 0
        var lossy = 0
        for block in blocks.shuffled(using: &random).prefix(16) {
            let disk = baseImage.copy()
            disk.corrupt(BlockNumber(block)) { bytes in for index in bytes.indices { bytes[index] = UInt8.random(in: 0...255, using: &random) } }
            guard let report = try? Checker(disk).run(), !report.isClean else { continue }
            let repairer = makeRepairer(disk)
            let outcome = try #require(try repairer.plan(), "block \(block): \(report.findings.map(\.description)) \(repairer.attempts)")
            try expectRepair(disk, outcome, digest: outcome.losesSomething ? nil : baseDigest)
            repaired += 1
            lossy += outcome.losesSomething ? 1 : 0
        }
        print("blocks turned to noise: \(repaired) repaired, \(lossy) of them with a loss")
        #expect(repaired > 3)
    }

    @Test func theIndexLostEverywhere() throws {
        // No leaf that names a checkpoint is left on the medium: mkfs's own leaf and the journal lead to the present all the same.
        let disk = baseImage.copy()
        for (block, bytes) in contents(disk) where bytes.starts(with: [0x44, 0x42, 0x6e, 0x64]) && bytes[25] == NodeLayout.Kind.space.rawValue {
            disk.corrupt(BlockNumber(block)) { $0 = [UInt8](repeating: 0, count: blockSize) }
        }
        let repairer = makeRepairer(disk)
        let outcome = try #require(try repairer.plan(), "\(repairer.attempts)")
        #expect(!outcome.losesSomething && outcome.superblock.horizon == SequenceNumber(0), "\(described(outcome))")
        try expectRepair(disk, outcome, digest: baseDigest)
    }

    @Test func aLongReplayIsRelieved() throws {
        // Nodes and pages are written out at each former checkpoint, and the tree is the same.
        let repairer = makeRepairer(baseImage.copy())
        repairer.reliefLimit = 1
        let outcome = try #require(try repairer.rebuild(), "\(repairer.attempts)")
        try expectRepair(baseImage.copy(), outcome, digest: nil)
        let same = try treeDigest(outcome.overlay) == baseDigest
        #expect(same)
    }

    @Test(arguments: ["space", "history", "tree"]) func sharedBlocksAreCountedAnew(what: String) throws {
        // Blocks that two and three files hold, some of them let go of since, some only in the past.
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        for name in ["a", "b", "c", "d"] { try volume.make(name) }
        try volume.write("a", pattern(400_000, 1))
        try volume.write("d", pattern(40_000, 2))
        try volume.checkpointNow()
        let source = try volume.find("a").inode
        for (name, offset) in [("b", 0), ("c", 40960)] {
            _ = try volume.copyRange(from: source, at: UInt64(offset), to: try volume.find(name).inode, at: 0, length: 200_704, testCaller)
        }
        try volume.checkpointNow()
        try volume.write("b", pattern(8192, 3), at: 4096)
        try volume.checkpointNow()
        try volume.unlink("c")
        try volume.write("d", pattern(9000, 4))
        try volume.checkpointNow()
        try volume.make("e")
        try volume.close()
        let digest = try treeDigest(disk)
        let editor = try Editor(disk)
        #expect(editor.space.contains { $0.key.high == UInt64(SpaceItemType.share.rawValue) })
        switch what {
        case "space": editor.spoil(editor.superblock.spaceRoot.address)
        case "history": editor.spoil(editor.checkpoints[2].deadList)
        default: editor.spoil(editor.superblock.checkpoint.root.address)
        }
        let repairer = makeRepairer(disk)
        let outcome = try #require(try repairer.plan(), "\(repairer.attempts)")
        #expect(!outcome.losesSomething, "\(described(outcome))")
        try expectRepair(disk, outcome, digest: digest)
        // What the counts say now decides what dies when the last extent lets go.
        try Changes(makeRepairer(disk).plan()!.overlay).write(to: disk)
        let after = try openVolume(disk)
        try after.unlink("a")
        try after.checkpointNow()
        try after.unlink("b")
        try after.close()
        let report = try Checker(disk).run()
        #expect(report.isClean, "\(report.findings.map(\.description))")
    }

    @Test func filesWithoutANameAreFound() throws {
        // The names of the root are lost, and no past is left to take them from.
        let disk = baseImage.copy()
        let editor = try Editor(disk)
        let names = editor.tree.filter { $0.key.isOf(.root, .entry) }
        let leaf = editor.leaf(of: names[names.count / 2].key)
        let gone = names.filter { editor.leaf(of: $0.key) == leaf }.map { $0.value.withRawBytes { EntryItem($0)!.inode } }
        #expect(gone.count > 3)
        let inodes = Set(editor.tree.filter { $0.key.type == ItemType.inode.rawValue }.map(\.key.inode))
        let kept = gone.filter { editor.leaf(of: Key($0, .inode)) != leaf && editor.leaf(of: Key($0, .extent)) != leaf }
        #expect(!kept.isEmpty)
        let before = try openVolume(disk.copy(), mode: .readOnly)
        disk.corrupt(leaf) { $0 = [UInt8](repeating: 0x55, count: blockSize) }
        let repairer = makeRepairer(disk)
        repairer.allows = { $0 == "E" }
        let outcome = try #require(try repairer.plan(), "\(repairer.attempts)")
        #expect(outcome.losesSomething && outcome.lines.contains { $0.text.contains("no name led to it") && $0.path != nil })
        try Changes(outcome.overlay).write(to: disk)
        #expect(try Checker(disk).run().isClean)
        let volume = try openVolume(disk, mode: .readOnly)
        let found = Set(try volume.names("lost+found"))
        for inode in kept {
            #expect(found.contains("#\(inode)") || (try? volume.attributes(inode).item.links) ?? 0 > 0, "inode \(inode)")
            guard let item = try? before.attributes(inode).item, item.isRegular else { continue }
            let (old, new) = (AlignedBuffer(count: Int(item.length)), AlignedBuffer(count: Int(item.length)))
            #expect(try before.read(inode, at: 0, into: old.bytes) == volume.read(inode, at: 0, into: new.bytes))
            #expect(old.bytes.equals(new.bytes))
        }
        #expect(inodes.count > found.count)
    }

    @Test func bothSlotsLost() throws {
        let disk = baseImage.copy()
        for slot in Superblock.slots { disk.corrupt(slot) { $0 = [UInt8](repeating: 0xee, count: blockSize) } }
        // What it was must still be told from what never was a Daybook filesystem.
        disk.corrupt(Superblock.slots[0]) { $0.replaceSubrange(0..<8, with: [1, 0x44, 0x41, 0x59, 0x42, 0x4f, 0x4f, 0x4b]) }
        let repairer = makeRepairer(disk)
        let outcome = try #require(try repairer.plan(), "\(repairer.attempts)")
        #expect(outcome.losesSomething)
        try expectRepair(disk, outcome, digest: baseDigest)
    }

    /// An image cut short keeps its slots: whatever older filesystem its new end may show a copy of is not brought back.
    @Test func cutShortIsNotLostSlots() throws {
        let whole = baseImage
        let disk = SimulatedDisk(blockCount: whole.blockCount / 2)
        let page = AlignedBuffer(count: blockSize)
        for block in 0..<disk.blockCount {
            try whole.read(BlockNumber(block), into: page.bytes)
            try disk.write(BlockNumber(block), page.bytes)
        }
        let older = Superblock(
            id: FilesystemID(high: 8, low: 9), label: "", blockCount: disk.blockCount, chunkBlocks: 256, seed: HashSeed(k0: 0, k1: 0),
            nonce: 1, created: Timestamp(nanoseconds: 1), checkpoint: try SlotState(whole).newest.checkpoint,
            spaceRoot: try SlotState(whole).newest.spaceRoot)
        try Repair.identity(of: older, disk)
        #expect(throws: CheckError.self) { try SlotState(disk) }
        #expect(try makeRepairer(disk).plan() == nil)
    }

    /// A write that the power fails in leaves each sector as it was or as it was to be, in the repair as in its undoing.
    @Test func tornBlocksAreUndone() throws {
        let damaged = baseImage.copy()
        try plantings.first { $0.code == .bitmapDamaged }!.plant(try Editor(damaged))
        let outcome = try #require(try makeRepairer(damaged).plan())
        let before = contents(damaged)
        let undo = undoPath()
        defer { unlink(undo) }
        let changes = try Changes(outcome.overlay)
        try UndoFile.save(changes, to: undo, id: outcome.superblock.id, time: Timestamp(nanoseconds: 1))
        for part in 1..<8 {
            let disk = damaged.copy()
            let page = AlignedBuffer(count: blockSize)
            for (index, change) in changes.list.enumerated() {
                try outcome.overlay.read(BlockNumber(change.block), into: page.bytes)
                let new = page.bytes.array
                disk.corrupt(BlockNumber(change.block)) { old in
                    for sector in 0..<8 where (index + sector) % 8 < part { old.replaceSubrange(sector * 512..<sector * 512 + 512, with: new[sector * 512..<sector * 512 + 512]) }
                }
            }
            _ = try UndoFile(undo).restore(to: disk)
            let same = contents(disk) == before
            #expect(same, "torn at \(part)")
        }
        // A sector that is neither is somebody's.
        let used = damaged.copy()
        used.corrupt(BlockNumber(changes.list.last!.block)) { $0[700] ^= 1 }
        #expect(throws: RepairFailure.self) { try UndoFile(undo).verify(used) }
    }

    /// Where everything but the tree is lost, what lies where it cannot belong goes, and that is a loss of its own.
    @Test func aFileThatTurnedIntoSomethingElseIsALoss() throws {
        for kind: UInt32 in [0o010000, 0o040000] {
            let disk = baseImage.copy()
            let editor = try Editor(disk)
            editor.inode(editor.entry("x").inode) { $0.mode = $0.mode & 0o7777 | kind }
            let repairer = makeRepairer(disk)
            repairer.allows = { $0 == "E" }
            let outcome = try #require(try repairer.plan(), "\(repairer.attempts)")
            #expect(outcome.lines.contains { $0.isLoss && $0.text.contains("blocks at offset") }, "\(described(outcome))")
        }
    }

    @Test func lossesBeyondTheListAreCounted() throws {
        let superblock = try SlotState(baseImage).newest
        let tree = Tree(
            cache: PageCache(limit: 64), device: baseImage, kind: .main, id: superblock.id, root: superblock.checkpoint.root,
            level: superblock.checkpoint.rootLevel)
        let mend = Mend(
            tree, superblock, structure: BlockSet(blockCount: superblock.blockCount), lost: [], isCancelled: { false })
        for number in 0..<10_003 { mend.say("small thing \(number)", isLoss: false) }
        for number in 0..<10_002 { mend.say("lost thing \(number)", isLoss: true) }
        let report = mend.report()
        #expect(report.count == 20_002)
        #expect(report.filter(\.isLoss).count == 10_001)
        #expect(report.suffix(2).map(\.text) == ["3 more of the kinds above, which are not listed", "2 more of the kinds above, which are not listed"])
    }

    /// A number from the image is no place in it.
    @Test func aBitmapBeyondAllBlocks() throws {
        let disk = baseImage.copy()
        try Editor(disk).editSpaceItem(Key(.region, 0)) { $0.set(u64: .max, at: 0) }
        let repairer = makeRepairer(disk)
        let outcome = try #require(try repairer.plan(), "\(repairer.attempts)")
        try expectRepair(disk, outcome, digest: baseDigest)
    }

    @Test func rebuiltFromTheJournalAlone() throws {
        let outcome = try #require(try makeRepairer(baseImage.copy()).rebuild())
        #expect(outcome.superblock.horizon == SequenceNumber(0))
        let same = try treeDigest(outcome.overlay) == baseDigest
        #expect(same)
    }
}
