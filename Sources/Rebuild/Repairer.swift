// Repairer: from an image that is wrong to one that is right, in memory.
//
//   check ─► survey ─► plans, the one that loses least first ─┬─► overlay ─► check: clean? ─► the outcome
//                                                             └─ no: the next plan
//
// Ordered passes of a plan: superblocks and their copies; checkpoints; journal; tree (as it is, from an older checkpoint and the
// journal, or without what is lost); items, names and counts; free space, share counts, lists; slots.
//
//   A  nothing but a slot, the copy of identity, or the mark of damage: these
//   B  the newest tree is whole, or some older one and the journal from there on: space state anew, replay        nothing is lost
//   C  the same from the oldest checkpoint: all but its tree is made from the journal                             nothing is lost
//   D  the journal or history has a gap: what lies before it is given up; what cannot be replayed is cut off
//   E  no tree is whole: without the nodes that are lost; files without a name go to lost+found
//   F  nothing of the newest tree is there: back to an older one, with as much of the journal as follows it
//
// (R1) A plan counts only if a complete check of its overlay finds nothing (but damaged file data, which nothing can bring back).
//      So no repair makes an image worse.
// (R2) What the image reaches as it is found is not written to, slots apart: new blocks are taken from those that neither a check, nor
//      the bitmaps, nor the journal's records know of. So a power failure while the outcome is written (Changes, X2) leaves what
//      was found.
// (R3) Every plan starts from the image as it was found.
// (R4) What is lost is in the outcome's lines, and marks the plan as one that loses something.

public import Check
public import Device
public import Format
import Journal
import Memory
import Space
import Tree
import Volume

/// What a repair comes to.
public struct RepairOutcome {
    public let overlay: OverlayDevice
    public let lines: [RepairLine]
    /// Of the repaired image.
    public let report: CheckReport
    public let superblock: Superblock
    public var losesSomething: Bool { lines.contains(where: \.isLoss) }
}

public final class Repairer {
    public struct Environment {
        public var clock: @Sendable () -> Timestamp
        public var random: @Sendable () -> UInt64
        public var progress: (String, Double) -> Void
        public var isCancelled: () -> Bool
        public init(
            clock: @escaping @Sendable () -> Timestamp, random: @escaping @Sendable () -> UInt64,
            progress: @escaping (String, Double) -> Void = { _, _ in }, isCancelled: @escaping () -> Bool = { false }
        ) {
            self.clock = clock
            self.random = random
            self.progress = progress
            self.isCancelled = isCancelled
        }
    }

    private let device: any BlockDevice
    private let options: CheckOptions
    private let environment: Environment
    /// Plans that may be tried; for tests.
    var allows: (Character) -> Bool = { _ in true }
    /// Why each plan that was tried did not do, for -v.
    public private(set) var attempts: [String] = []

    // The image as found, readable: slots made up if need be.
    private var base: OverlayDevice
    private var slots: SlotState!
    private var found: CheckReport!
    private var lines: [RepairLine] = []
    private var avoid = BlockSet(blockCount: 0)
    private var scanned: Scan?

    public init(_ device: any BlockDevice, options: CheckOptions, environment: Environment) {
        self.device = device
        self.options = options
        self.environment = environment
        base = OverlayDevice(device, dropsEqual: true)
    }

    /// The first plan that puts everything right; nil when none does.
    public func plan() throws(RepairFailure) -> RepairOutcome? {
        do { return try attempt() } catch { throw Self.failure(error) }
    }

    /// The newest tree from the oldest retained checkpoint and the journal alone. Nil when the journal does not reach.
    public func rebuild() throws(RepairFailure) -> RepairOutcome? {
        do {
            guard try prepare() else { return nil }
            let survey = try survey()
            guard survey.firstContinuous == 0, survey.candidates[0].isWhole, survey.tailDamage == nil else { return nil }
            return try run("rebuild") { try fromCheckpoint(survey, oldest: 0, from: 0, lines: []) }
        } catch { throw Self.failure(error) }
    }

    private static func failure(_ error: any Error) -> RepairFailure {
        switch error {
        case let error as RepairFailure: error
        case is Cancelled, CheckError.cancelled: RepairFailure(.cancelled, "cancelled")
        default: RepairFailure(.damaged, text(error))
        }
    }

    private static func text(_ error: any Error) -> String {
        switch error {
        case Space.Failure.damaged(let text): text
        case Space.Failure.device(let error): error.description
        case CheckError.unusable(let text, _): text
        default: "\(error)"
        }
    }

    // MARK: the image as found

    /// False when there is no superblock, and nothing to make one from.
    private func prepare() throws -> Bool {
        do throws(CheckError) { slots = try SlotState(base) } catch {
            guard case .unusable(_, .slotsLost) = error, try makeSuperblock() else { return false }
            slots = try SlotState(base)
        }
        let checker = try Checker(
            base, options: CheckOptions(), progress: { [environment] in environment.progress("look", (Double($0.rawValue) - 1 + $1) / 6) },
            isCancelled: environment.isCancelled)
        found = try checker.run()
        avoid = checker.owned
        addBitmaps()
        return true
    }

    /// What the bitmaps call used may be reached by something that cannot be read (R2).
    private func addBitmaps() {
        let id = slots.newest.id
        let page = AlignedBuffer(count: blockSize)
        let walk = NodeWalk(device: base, kind: .space, id: id, isCancelled: environment.isCancelled)
        var items: [(UInt64, RegionItem)] = []
        var seen = Set<UInt64>()
        walk.claim = { reference, _ in seen.insert(reference.address.value).inserted }
        walk.leaf = { page, range in
            for index in range where NodeLayout.key(page, index).high == UInt64(SpaceItemType.region.rawValue) {
                if let item = RegionItem(NodeLayout.value(page, index)) { items.append((NodeLayout.key(page, index).low, item)) }
            }
        }
        try? walk.walk(slots.newest.spaceRoot, level: slots.newest.spaceLevel)
        for (number, item) in items where number < slots.newest.regions {
            guard (try? base.read(item.bitmap, into: page.bytes)) != nil,
                (try? Region.validate(page.bytes, region: number, item: item, id: id, blockCount: slots.newest.blockCount)) != nil
            else { continue }
            let first = number * UInt64(Region.blocks)
            for word in 0..<Region.blocks / 64 {
                var bits = page.bytes.u64(at: Region.bits + word * 8)
                while bits != 0 {
                    let block = first + UInt64(word) * 64 + UInt64(bits.trailingZeroBitCount)
                    bits &= bits - 1
                    if block < avoid.blockCount { avoid.insert(block, 1) }
                }
            }
        }
    }

    private func scan() throws -> Scan {
        if let scanned { return scanned }
        let result = try Scan(
            base, id: slots?.newest.id, chunkBlocks: slots?.newest.chunkBlocks,
            progress: { [environment] in environment.progress("scan", $0) }, isCancelled: environment.isCancelled)
        scanned = result
        return result
    }

    /// Neither slot can be read: identity and geometry from their copy, the state from what is found on the medium.
    private func makeSuperblock() throws -> Bool {
        let scan = try scan()
        guard var superblock = scan.identity, superblock.blockCount <= device.blockCount, let header = scan.lastHeader else { return false }
        // Noise names nothing twice.
        let named = slotIDs()
        guard named.count < 2 || named[0] != named[1] || named[0] == superblock.id else {
            attempts.append("the copy of identity and geometry is of another filesystem than what is left of the slots")
            return false
        }
        let last = scan.checkpoints.last { item in
            let page = AlignedBuffer(count: blockSize)
            return item.root.address.value < superblock.blockCount && item.journal.epoch <= header.position.epoch
                && item.journal.serial <= header.position.serial && (try? base.read(item.root.address, into: page.bytes)) != nil
                && (try? NodeLayout.validate(page.bytes, kind: .main, id: superblock.id, expected: item.root, level: item.rootLevel)) != nil
        }
        guard let last else { return false }
        // The oldest retained checkpoint is the one that nothing died before.
        superblock.horizon = scan.checkpoints.last { $0.deadList.value == 0 && $0.sequence <= last.sequence }?.sequence ?? last.sequence
        superblock.checkpoint = last
        superblock.spaceRoot = last.root
        superblock.epoch = header.position.epoch
        superblock.nonce = header.position.nonce
        superblock.flags = 0
        let page = AlignedBuffer(count: blockSize)
        for slot in [0, 1] {
            superblock.generation = UInt64(slot) + 1
            superblock.store(page.bytes, slot: slot)
            try base.write(Superblock.slots[slot], page.bytes)
        }
        lines.append(RepairLine(
            "both superblock slots are made anew, from their copy in the last block, checkpoint \(last.sequence) and the journal behind it;"
                + " settings made after mkfs are lost",
            isLoss: true))
        return true
    }

    /// The filesystems that damaged slots still name.
    private func slotIDs() -> [FilesystemID] {
        let page = AlignedBuffer(count: blockSize)
        return Superblock.slots.compactMap { block in
            guard (try? base.read(block, into: page.bytes)) != nil, Superblock.looksLikeOne(page.bytes) else { return nil }
            return Superblock.namedID(page.bytes)
        }
    }

    private func survey() throws -> Survey {
        environment.progress("survey", 0)
        let size = UInt64(slots.newest.chunkBlocks)
        return try Survey(
            try base.copy(), slots.newest, older: slots.slots[1 - slots.newestSlot], isCancelled: environment.isCancelled,
            scan: { [unowned self] in try scan() },
            pickChunk: { [unowned self] in
                var builder = StateBuilder(base, avoid: avoid, isCancelled: environment.isCancelled)
                let chunk = builder.pickChunk(size)
                avoid = builder.avoid
                return chunk
            })
    }

    // MARK: plans

    private func attempt() throws -> RepairOutcome? {
        guard try prepare() else { return nil }
        let small: Set<FindingCode> = [.slotDamaged, .identityDamaged, .identityDiffers, .markedDamaged]
        if Set(found.counts.keys).isSubset(of: small), let outcome = try run("A", { try superblocksOnly() }) { return outcome }

        let survey = try survey()
        let newest = survey.newest
        let mended = survey.mended.map { RepairLine($0, isLoss: false) } + [survey.missing].compactMap { $0 }
        func kept(from oldest: Int) -> Int? {
            guard survey.candidates[oldest].isWhole else { return nil }
            var at = oldest
            while at < newest, survey.candidates[at + 1].isWhole, survey.candidates[at + 1].listIsWhole { at += 1 }
            return at
        }
        // B, C
        if survey.firstContinuous == 0, survey.tailDamage == nil {
            let from = kept(from: 0)
            if let from, let outcome = try run("B", { try fromCheckpoint(survey, oldest: 0, from: from, lines: mended) }) { return outcome }
            if let from, from > 0, let outcome = try run("C", { try fromCheckpoint(survey, oldest: 0, from: 0, lines: mended) }) { return outcome }
        }
        // D, as long as it does not lead back behind the newest checkpoint: then what E loses is less.
        func withoutHistory(stepsBack: Bool) throws -> RepairOutcome? {
            for start in Set([survey.firstContinuous, newest]).sorted() where start <= newest {
                guard let oldest = (start...newest).first(where: { survey.candidates[$0].isWhole }), let last = kept(from: oldest) else { continue }
                for from in Set([last, oldest]).sorted(by: >) {
                    let outcome = try run("D \(oldest) \(from)") {
                        try self.withoutHistory(survey, oldest: oldest, from: from, stepsBack: stepsBack, lines: mended)
                    }
                    if let outcome { return outcome }
                }
            }
            return nil
        }
        if let outcome = try withoutHistory(stepsBack: false) { return outcome }
        // E
        if let outcome = try run("E", { try withoutLostNodes(survey, lines: mended) }) { return outcome }
        // F
        if let outcome = try withoutHistory(stepsBack: true) { return outcome }
        for at in survey.candidates.indices.reversed() where at < newest && survey.candidates[at].isWhole {
            if let outcome = try run("F \(at)", { try backTo(survey, at, lines: mended) }) { return outcome }
        }
        return nil
    }

    /// Runs a plan and checks what comes of it (R1).
    private func run(_ name: String, _ plan: () throws -> (OverlayDevice, [RepairLine])?) throws -> RepairOutcome? {
        guard allows(name.first!) else { return nil }
        do {
            guard let (overlay, lines) = try plan() else { return nil }
            let checker = try Checker(
                overlay, options: options, progress: { [environment] in environment.progress("check", (Double($0.rawValue) - 1 + $1) / 6) },
                isCancelled: environment.isCancelled)
            let report = try checker.run()
            let beyond: Set<FindingCode> = [.dataDamaged, .tailNotZero]
            guard Set(report.counts.keys).isSubset(of: beyond) else {
                attempts.append("plan \(name): " + (report.findings.first { !beyond.contains($0.code) }?.description ?? "not clean"))
                return nil
            }
            return RepairOutcome(overlay: overlay, lines: self.lines + lines, report: report, superblock: try SlotState(overlay).newest)
        } catch let error as RepairFailure where error.kind == .damaged {
            attempts.append("plan \(name): \(error)")
        } catch let error as DeviceError {
            attempts.append("plan \(name): \(error)")
        } catch is Cancelled {
            throw Cancelled()
        } catch CheckError.cancelled {
            throw Cancelled()
        } catch {
            attempts.append("plan \(name): \(Self.text(error))")
        }
        return nil
    }

    /// A: the state is whole; only how it is found is not.
    private func superblocksOnly() throws -> (OverlayDevice, [RepairLine])? {
        let overlay = try base.copy()
        var lines: [RepairLine] = []
        if found.counts[.markedDamaged] != nil {
            try Repair.mark(slots, overlay, isDamaged: false)
            lines.append(RepairLine("no damage was found, and the mark of damage is taken away", isLoss: false))
        }
        let state = try SlotState(overlay)
        if state.slots[1 - state.newestSlot] == nil {
            try Repair.slot(state, overlay)
            lines.append(RepairLine("the damaged superblock slot is written anew from the other", isLoss: false))
        }
        if found.counts[.identityDamaged] != nil || found.counts[.identityDiffers] != nil {
            try Repair.identity(of: state.newest, overlay)
            lines.append(RepairLine("the copy of identity and geometry is written anew", isLoss: false))
        }
        if try !SlotState(overlay).newest.isClean { try replay(overlay) }
        return (overlay, lines)
    }

    /// B, C: the newest tree, whole, or made from an older one and the journal.
    private func fromCheckpoint(
        _ survey: Survey, oldest: Int, from: Int, lines: [RepairLine], cut: JournalPosition? = nil
    ) throws -> (OverlayDevice, [RepairLine])? {
        let items = survey.candidates[oldest...from].map(\.item)
        let overlay = try survey.device.copy()
        var builder = StateBuilder(overlay, avoid: avoid, isCancelled: environment.isCancelled)
        let isNewest = from == survey.newest
        let clean = isNewest && slots.newest.isClean && found.counts[.journalContinues] == nil && cut == nil
        let claims = try survey.claims(behind: items[items.count - 1])
        environment.progress("space", 0)
        let built = try builder.build(
            survey.superblock, newestSlot: slots.newestSlot, kept: items, claims: claims, clean: clean, cut: cut)
        var lines = lines
        if !isNewest {
            let at = cut.map { min($0.next.before.value, survey.superblock.checkpoint.sequence.value) } ?? survey.superblock.checkpoint.sequence.value
            lines.append(RepairLine(
                "the tree at sequence \(at) is made anew from checkpoint \(items[items.count - 1].sequence) and the journal behind it",
                isLoss: false))
        }
        let source = items.count == 1 ? "the tree" : "the trees and what died between them"
        lines.append(RepairLine(
            "free space, share counts and the indexes of checkpoints and journal are made anew from \(source)", isLoss: false))
        if !clean {
            let stops = survey.candidates[from...].filter { $0.isMet && $0.item.sequence > built.checkpoint.sequence }.map(\.item.sequence)
            try settle(overlay, &builder, built, claims, stops: cut == nil ? stops : [])
        }
        return (overlay, lines)
    }

    /// D: history before a gap is given up; records that cannot be replayed are cut off.
    private func withoutHistory(
        _ survey: Survey, oldest: Int, from: Int, stepsBack: Bool, lines: [RepairLine]
    ) throws -> (OverlayDevice, [RepairLine])? {
        var lines = lines
        if oldest > 0 { lines.append(lostHistory(survey, to: oldest)) }
        if survey.firstContinuous > survey.newest {
            guard oldest == survey.newest, !stepsBack else { return nil }
            let survey = try restarted(survey)
            lines.append(restartedLine(survey))
            return try fromCheckpoint(survey, oldest: 0, from: 0, lines: lines)
        }
        guard oldest >= survey.firstContinuous else { return nil }
        let cut = try cut(survey, survey.device, survey.candidates[from].item)
        guard (cut.map { $0.position.next <= survey.superblock.checkpoint.sequence } ?? false) == stepsBack else { return nil }
        if let cut { lines.append(lostRecords(cut)) }
        return try fromCheckpoint(survey, oldest: oldest, from: from, lines: lines, cut: cut?.position)
    }

    private func restartedLine(_ survey: Survey) -> RepairLine {
        let what = slots.newest.isClean ? "" : ", and what may have followed is lost"
        return RepairLine(
            "the journal cannot be read where checkpoint \(survey.superblock.checkpoint.sequence) goes on: a new one begins there\(what)",
            isLoss: true)
    }

    private func lostHistory(_ survey: Survey, to oldest: Int) -> RepairLine {
        let why = survey.gaps.first.map { ": behind sequence \($0.after) " + $0.text } ?? ""
        let (from, to) = (survey.candidates[0].item.sequence, survey.candidates[oldest].item.sequence.before)
        return RepairLine("history is given up: past states from sequence \(from) to \(to) can no longer be opened\(why)", isLoss: true)
    }

    private func lostRecords(_ cut: (position: JournalPosition, text: String)) -> RepairLine {
        RepairLine("what was done from sequence \(cut.position.next) on is lost: \(cut.text)", isLoss: true)
    }

    /// Where the replay from a checkpoint comes to grief, if it does.
    private func cut(_ survey: Survey, _ device: OverlayDevice, _ item: CheckpointItem) throws -> (position: JournalPosition, text: String)? {
        let view = View(checkpoint: item, superblock: survey.superblock, device: device, cacheBytes: Self.cacheBytes)
        var start = item.journal
        do throws(ReplayError) {
            let replay = try Replay(view, from: item)
            replay.onFrame = { start = $0.position }
            _ = try replay.run()
            return nil
        } catch {
            if case .journal = error { return survey.tailDamage ?? (start, error.text) }
            return (start, error.text)
        }
    }

    /// A journal that begins behind the newest checkpoint, in chunks of its own.
    private func restarted(_ survey: Survey) throws -> Survey {
        let size = UInt64(survey.superblock.chunkBlocks)
        var builder = StateBuilder(base, avoid: avoid, isCancelled: environment.isCancelled)
        guard let chunk = builder.pickChunk(size), let successor = builder.pickChunk(size) else {
            throw RepairFailure(.damaged, "no room for a new journal")
        }
        avoid = builder.avoid
        let nonce = environment.random()
        var superblock = survey.superblock
        superblock.epoch += 1
        superblock.nonce = nonce
        let old = superblock.checkpoint.journal
        superblock.checkpoint.journal = JournalPosition(
            chunk: chunk, serial: old.serial + 1, block: 1, epoch: superblock.epoch, nonce: nonce, chain: nonce,
            next: superblock.checkpoint.sequence.next)
        let none = JournalPosition(chunk: BlockNumber(0), serial: 0, block: 0, epoch: 0, nonce: 0, chain: 0, next: SequenceNumber(0))
        superblock.cut = none
        let page = AlignedBuffer(count: blockSize)
        let device = try survey.device.copy()
        // What the chunks hold of earlier uses is of other epochs, and is not taken for frames of this one.
        ChunkHeader(position: superblock.checkpoint.journal, successor: successor, cut: none).store(page.bytes, id: superblock.id)
        try device.write(chunk, page.bytes)
        superblock.horizon = superblock.checkpoint.sequence
        return try Survey(
            device, superblock, older: nil, isCancelled: environment.isCancelled, scan: { [unowned self] in try scan() }, pickChunk: { nil })
    }

    /// E: the newest tree without what is lost of it.
    private func withoutLostNodes(_ survey: Survey, lines: [RepairLine]) throws -> (OverlayDevice, [RepairLine])? {
        var lines = lines
        var survey = survey
        let history = survey.newest
        let given = lostHistory(survey, to: history)
        if survey.firstContinuous > survey.newest {
            survey = try restarted(survey)
            lines.append(restartedLine(survey))
        }
        let overlay = try survey.device.copy()
        var builder = StateBuilder(overlay, avoid: avoid, isCancelled: environment.isCancelled)
        var item = survey.superblock.checkpoint
        let prune = Prune(overlay, id: survey.superblock.id, birth: item.sequence) { try builder.pick() }
        guard let root = try prune.prune(item.root, level: item.rootLevel) else {
            throw RepairFailure(.damaged, "nothing is left of the tree at sequence \(item.sequence)")
        }
        item.root = root
        for range in prune.lost { lines.append(RepairLine("\(range.block): \(range.text); it held \(Self.described(range))", isLoss: true)) }
        if history > 0 { lines.append(given) }
        let claims = try survey.claims(behind: item)
        let cut = try cut(survey, overlay, item)
        if let cut { lines.append(lostRecords(cut)) }
        let clean = slots.newest.isClean && cut == nil && found.counts[.journalContinues] == nil
        var superblock = try builder.build(
            survey.superblock, newestSlot: slots.newestSlot, kept: [item], claims: claims, clean: clean, cut: cut?.position)
        if !clean { superblock = try settle(overlay, &builder, superblock, claims, stops: []) }

        item = superblock.checkpoint
        let tree = Tree(
            cache: PageCache(limit: Self.cacheBytes / blockSize), device: overlay, kind: .main, id: superblock.id, root: item.root,
            level: item.rootLevel)
        environment.progress("mend", 0)
        let mend = Mend(
            tree, superblock, structure: try structure(overlay, superblock), lost: prune.lost, isCancelled: environment.isCancelled)
        try mend.run()
        let frozen = tree.freeze()
        var blocks: [BlockNumber] = []
        for _ in 0..<frozen.count { blocks.append(try builder.pick()) }
        try frozen.write(tree, to: blocks, birth: item.sequence) { (block, bytes) throws(DeviceError) in try overlay.write(block, bytes) }
        item = mend.counted(item)
        lines += mend.report()
        item.root = frozen.sealedRoot
        item.rootLevel = frozen.level
        superblock.checkpoint = item
        _ = try builder.build(
            superblock, newestSlot: slots.newestSlot, kept: [item], claims: BlockSet(blockCount: superblock.blockCount), clean: true)
        return (overlay, lines)
    }

    private static func described(_ range: LostRange) -> String {
        let from = range.lower.high >> 8
        guard let upper = range.upper else { return "what there was from inode \(from) on" }
        return from == upper.high >> 8 ? "part of inode \(from)" : "what there was of inodes \(from) to \(upper.high >> 8)"
    }

    /// Nodes of the newest tree and the journal's chunks.
    private func structure(_ device: OverlayDevice, _ superblock: Superblock) throws -> BlockSet {
        var set = BlockSet(blockCount: superblock.blockCount)
        let walk = NodeWalk(device: device, kind: .main, id: superblock.id, isCancelled: environment.isCancelled)
        walk.claim = { reference, _ in reference.address.value < superblock.blockCount && set.insert(reference.address.value, 1) == nil }
        try walk.walk(superblock.checkpoint.root, level: superblock.checkpoint.rootLevel)
        set.insert(superblock.checkpoint.journal.chunk.value, UInt64(superblock.chunkBlocks))
        return set
    }

    /// F: an older state.
    private func backTo(_ survey: Survey, _ at: Int, lines: [RepairLine]) throws -> (OverlayDevice, [RepairLine])? {
        var lines = lines
        let item = survey.candidates[at].item
        let position: JournalPosition
        if let cut = try cut(survey, survey.device, item) {
            position = cut.position
            lines.append(lostRecords(cut))
        } else {
            let view = View(checkpoint: item, superblock: survey.superblock, device: survey.device, cacheBytes: Self.cacheBytes)
            position = try Replay(view, from: item).run().position
            lines.append(RepairLine(
                "what was done after sequence \(position.next.before) is lost: the journal does not lead further", isLoss: true))
        }
        if at > 0 { lines.append(lostHistory(survey, to: at)) }
        return try fromCheckpoint(survey, oldest: at, from: at, lines: lines, cut: position)
    }

    // MARK: replaying

    /// Recovers as a mount would and ends with a clean checkpoint.
    private func replay(_ overlay: OverlayDevice, keepingOff set: () -> BlockSet? = { nil }, relief: ReplayRelief? = nil) throws {
        environment.progress("replay", 0)
        let volume: Volume
        var options = OpenOptions()
        options.cacheBytes = Self.cacheBytes
        do throws(OpenError) {
            volume = try Volume.openAlone(
                overlay, options: options, clock: environment.clock, random: environment.random, preparing: false, onEvent: { _ in },
                relief: relief)
        } catch { throw RepairFailure(.damaged, error.description) }
        if let set = set() { volume.keepOff(set.runs) }
        do throws(OperationError) { try volume.checkpointAlone(clean: true) } catch { throw RepairFailure(.damaged, "\(error)") }
    }

    /// A replay holds what is dirty in memory until its next stop; a cache that it does not fit is searched in vain at each record.
    private static let cacheBytes = 1 << 30

    /// Dirty nodes, or pages, of a replay that are written to the overlay at the next occasion: about what a mount holds at most.
    var reliefLimit = 2048

    /// Replays what follows the checkpoint just built; then bitmaps once more, without what was only kept off (R2).
    @discardableResult
    private func settle(
        _ overlay: OverlayDevice, _ builder: inout StateBuilder, _ built: Superblock, _ claims: BlockSet, stops: [SequenceNumber]
    ) throws -> Superblock {
        // Nodes written on the way must not lie where records still to come put data.
        var picking = builder
        for run in claims.runs { picking.avoid.insert(run.start.value, run.count) }
        let relief = ReplayRelief(stops: stops) { [reliefLimit, environment] (view) throws(ViewError) in
            environment.progress("replay", Double(view.sequence.value) / Double(max(1, stops.last!.value)))
            guard view.tree.dirtyCount >= reliefLimit || view.pages.unposted >= reliefLimit else { return }
            do { try Self.relieve(view, overlay, &picking, base: built.checkpoint.sequence) } catch { throw .damaged(Self.text(error)) }
        }
        try replay(overlay, keepingOff: { picking.avoid }, relief: relief)
        let superblock = try SlotState(overlay).newest
        let items = try Space.openIndex(superblock, device: overlay).checkpoints()
        return try builder.build(
            superblock, newestSlot: slots.newestSlot, kept: items, claims: BlockSet(blockCount: superblock.blockCount), clean: true)
    }

    /// Writes out what a replay holds in memory, as the checkpoint did that was once written at this sequence. No root of that state is kept:
    /// nodes of the checkpoint that the replay began with die here, those of states in between are forgotten.
    private static func relieve(_ view: View, _ overlay: OverlayDevice, _ picking: inout StateBuilder, base: SequenceNumber) throws {
        let posting = view.pages.freeze()
        let order = posting.map { (block: view.pages.cache.block($0)!, slot: $0) }.sorted { $0.block < $1.block }
        var first = 0
        while first < order.count {
            var end = first + 1
            while end < order.count, order[end].block == order[end - 1].block + 1 { end += 1 }
            try overlay.write(BlockNumber(order[first].block), gathering: order[first..<end].map { view.pages.cache.page($0.slot) })
            first = end
        }
        view.pages.posted(posting)
        let frozen = view.tree.freeze()
        var blocks: [BlockNumber] = []
        for _ in 0..<frozen.count { blocks.append(try picking.pick()) }
        try frozen.write(view.tree, to: blocks, birth: view.sequence) { (block, bytes) throws(DeviceError) in try overlay.write(block, bytes) }
        view.tree.finish(frozen)
        for node in frozen.deadNodes {
            if node.birth > base {
                overlay.forget(node.address)
            } else {
                view.freed.append(DeadEntry(start: node.address, count: 1, kind: .node, birth: node.birth, death: view.sequence))
            }
        }
        view.trim()
    }
}
