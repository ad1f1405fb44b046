// SlotState: the two superblock slots and the copy of identity and geometry, as found, before anything is replayed.

public import Device
public import Format
import Memory

public struct SlotState: Sendable {
    /// The valid slot of the higher generation.
    public let newest: Superblock
    public let newestSlot: Int
    public let slots: [Superblock?]
    public let findings: [Finding]
    public let identityIsGood: Bool

    /// Reads them. Throws when there is nothing to go on with.
    public init(_ device: any BlockDevice) throws(CheckError) {
        guard device.blockCount > Superblock.slots[1].value else {
            throw .unusable("\(device.name): too small for a Daybook filesystem", .other)
        }
        let buffer = AlignedBuffer(count: blockSize)
        var slots: [Superblock?] = [nil, nil]
        var reasons: [String] = []
        var looksLikeOne = false
        var unknown: FormatError?
        for (slot, block) in Superblock.slots.enumerated() {
            do throws(DeviceError) {
                try device.read(block, into: buffer.bytes)
                looksLikeOne = looksLikeOne || Superblock.looksLikeOne(buffer.bytes)
                do throws(FormatError) { slots[slot] = try Superblock(buffer.bytes, slot: slot) } catch {
                    if error.isUnknown { unknown = error }
                    reasons.append(error.description)
                }
            } catch { reasons.append(error.description) }
        }
        if let unknown {
            throw .unusable("\(device.name): \(unknown); this needs another version of Daybook", .other)
        }
        var best: Int?
        for slot in 0...1 where slots[slot] != nil {
            if best == nil || slots[slot]!.generation > slots[best!]!.generation { best = slot }
        }
        guard let best, let newest = slots[best] else {
            throw looksLikeOne || Self.hasIdentity(device, buffer.bytes)
                ? .unusable("\(device.name): no usable superblock: \(reasons[0])", .slotsLost)
                : .unusable("\(device.name): not a Daybook filesystem", .other)
        }
        guard newest.blockCount <= device.blockCount else {
            throw .unusable(
                "\(device.name): truncated: the filesystem has \(newest.blockCount) blocks, the image \(device.blockCount)",
                .truncated)
        }
        self.newest = newest
        newestSlot = best
        self.slots = slots

        var findings: [Finding] = []
        if slots[1 - best] == nil {
            findings.append(Finding(.slotDamaged, reasons[0], block: Superblock.slots[1 - best]))
        } else if let older = slots[1 - best], let problem = Self.contradiction(newest, older) {
            findings.append(Finding(.slotsDisagree, problem, block: Superblock.slots[1 - best]))
        }
        if newest.flags & Superblock.flagDamaged != 0 {
            findings.append(Finding(.markedDamaged, "an earlier fsck has left errors as they were", block: Superblock.slots[best]))
        }
        let last = BlockNumber(newest.blockCount - 1)
        var identity: Finding?
        do throws(DeviceError) {
            try device.read(last, into: buffer.bytes)
            do throws(FormatError) {
                let copy = try Superblock(buffer.bytes, slot: 2)
                if copy.id != newest.id || copy.blockCount != newest.blockCount || copy.chunkBlocks != newest.chunkBlocks
                    || copy.seed != newest.seed || copy.created != newest.created
                {
                    identity = Finding(.identityDiffers, "the copy is of filesystem \(copy.id), \(copy.blockCount) blocks", block: last)
                }
            } catch { identity = Finding(.identityDamaged, error.description, block: last) }
        } catch { identity = Finding(.identityDamaged, error.description, block: last) }
        if let identity { findings.append(identity) }
        identityIsGood = identity == nil
        self.findings = findings
    }

    /// Whether the image ends with the copy of identity and geometry of a filesystem of its size: then it begins with what has taken the
    /// place of one.
    private static func hasIdentity(_ device: any BlockDevice, _ page: RawBytes) -> Bool {
        guard (try? device.read(BlockNumber(device.blockCount - 1), into: page)) != nil, let copy = try? Superblock(page, slot: 2) else { return false }
        return copy.blockCount == device.blockCount
    }

    /// What two slots of one filesystem cannot both say.
    private static func contradiction(_ newest: Superblock, _ older: Superblock) -> String? {
        if older.id != newest.id { return "the other slot is of filesystem \(older.id)" }
        if older.blockCount != newest.blockCount || older.chunkBlocks != newest.chunkBlocks || older.seed != newest.seed
            || older.created != newest.created
        { return "the slots have different geometry" }
        if older.generation == newest.generation { return "both slots are of generation \(newest.generation)" }
        if older.checkpoint.sequence > newest.checkpoint.sequence {
            return "the older slot names checkpoint \(older.checkpoint.sequence), the newer one \(newest.checkpoint.sequence)"
        }
        if older.epoch > newest.epoch { return "the older slot is of epoch \(older.epoch), the newer one of \(newest.epoch)" }
        // Every replay starts at or after the horizon, also from the older slot (invariant 5).
        if newest.horizon > older.checkpoint.sequence {
            return "the horizon \(newest.horizon) lies behind the older slot's checkpoint \(older.checkpoint.sequence)"
        }
        return nil
    }

    /// Whether a replay would have something to do, or to rule out.
    public var needsReplay: Bool { !newest.isClean || slots.contains { $0 == nil } }
}
