// Image: what is on a device, read without changing anything: superblock slots, checkpoints, journal, and views of any
// retained point. Used by the inspection tools, by read-only mounts, and by the volume to begin with.

public import Device
public import Format
import Journal
import Memory
public import Space

public struct OpenError: Error, Sendable, CustomStringConvertible {
    public enum Reason: Sendable { case notDaybook, damaged, unsupported, device, noSuchPoint, full }
    public let reason: Reason
    public let description: String
    public init(_ reason: Reason, _ description: String) {
        self.reason = reason
        self.description = description
    }
    init(_ error: DeviceError) { self.init(.device, error.description) }
    init(_ error: Space.Failure) {
        switch error {
        case .damaged(let text): self.init(.damaged, text)
        case .device(let error): self.init(error)
        }
    }
    init(_ error: ReplayError) { self.init(.damaged, error.text) }
}

public final class Image {
    public let device: any BlockDevice
    /// The newest valid slot.
    public let superblock: Superblock
    /// Both slots as found.
    public let slots: [Result<Superblock, FormatError>]
    public let newestSlot: Int
    /// Checkpoints, chunks; the map is not loaded.
    public let space: Space

    private var knownHorizon: SequenceNumber?

    /// Opens an image. A device without any Daybook superblock gives `.notDaybook`.
    public init(_ device: any BlockDevice) throws(OpenError) {
        self.device = device
        slots = try Self.readSlots(device)
        var best: (slot: Int, superblock: Superblock)?
        for (slot, result) in slots.enumerated() {
            // The other slot would be a step back in time, and what is written next would end what this one leads to.
            if case .failure(let error) = result, error.isUnknown {
                throw OpenError(.unsupported, "\(device.name): \(error); this needs another version of Daybook")
            }
            if case .success(let superblock) = result, best == nil || superblock.generation > best!.superblock.generation {
                best = (slot, superblock)
            }
        }
        guard let best else {
            if case .failure(let error) = slots[0] { throw Self.refusal(device, error) }
            throw OpenError(.notDaybook, "\(device.name): no Daybook filesystem")
        }
        superblock = best.superblock
        newestSlot = best.slot
        guard superblock.blockCount <= device.blockCount else {
            throw OpenError(
                .damaged,
                "\(device.name): truncated: the filesystem has \(superblock.blockCount) blocks, the image \(device.blockCount)")
        }
        space = Space.openIndex(superblock, device: device)
        space.chunkBlocks = UInt64(superblock.chunkBlocks)
    }

    static func readSlots(_ device: any BlockDevice) throws(OpenError) -> [Result<Superblock, FormatError>] {
        guard device.blockCount > Superblock.slots[1].value else {
            throw OpenError(.notDaybook, "\(device.name): too small for a Daybook filesystem")
        }
        let buffer = AlignedBuffer(count: blockSize)
        var results: [Result<Superblock, FormatError>] = []
        for (slot, block) in Superblock.slots.enumerated() {
            do throws(DeviceError) { try device.read(block, into: buffer.bytes) } catch { throw OpenError(error) }
            do throws(FormatError) {
                results.append(.success(try Superblock(buffer.bytes, slot: slot)))
            } catch { results.append(.failure(error)) }
        }
        return results
    }

    private static func refusal(_ device: any BlockDevice, _ error: FormatError) -> OpenError {
        let buffer = AlignedBuffer(count: blockSize)
        for block in Superblock.slots {
            guard (try? device.read(block, into: buffer.bytes)) != nil else { continue }
            if Superblock.looksLikeOne(buffer.bytes) {
                return OpenError(.damaged, "\(device.name): \(error.description); no usable superblock")
            }
        }
        return OpenError(.notDaybook, "\(device.name): not a Daybook filesystem")
    }

    /// Generation of the slot that does not hold the newest, when it is valid.
    public var olderSlot: Superblock? {
        if case .success(let superblock) = slots[1 - newestSlot] { return superblock }
        return nil
    }

    /// The oldest retained sequence. After a crash a record behind the checkpoint may have moved it, and what was given up may have
    /// been written over already. Where the journal cannot be read, what is known up to there.
    public var horizon: SequenceNumber {
        if let knownHorizon { return knownHorizon }
        var horizon = superblock.horizon
        if !superblock.isClean, let reader = try? JournalReader(
            device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: superblock.checkpoint.journal,
            cut: superblock.cut)
        {
            while let frame = try? reader.next() {
                try? frame.forEachRecord(mapping: { $0 }) { (record) throws(FormatError) in
                    if record.type == .horizon { horizon = max(horizon, SequenceNumber(record.payload.u64(at: 0))) }
                }
            }
        }
        knownHorizon = horizon
        return horizon
    }

    /// The checkpoint that replaying to `point` starts from.
    public func checkpoint(for point: Point) throws(OpenError) -> CheckpointItem {
        do throws(Space.Failure) {
            switch point {
            case .sequence(let sequence):
                if sequence >= horizon, let item = try space.checkpoint(atOrBefore: sequence) { return item }
            case .time(let time):
                if let item = try space.checkpoints().last(where: { $0.time <= time }), item.sequence >= horizon { return item }
            }
        } catch { throw OpenError(error) }
        throw OpenError(
            .noSuchPoint, "\(device.name): no history that far back; the oldest retained sequence is \(horizon)")
    }

    /// The view at a point, or the newest state when nil. The result says where the journal ended for it.
    public func view(
        at point: Point?, cacheBytes: Int = 64 << 20
    ) throws(OpenError) -> (view: View, replay: ReplayResult) {
        let start = try point.map { (point) throws(OpenError) in try checkpoint(for: point) } ?? superblock.checkpoint
        let view = View(checkpoint: start, superblock: superblock, device: device, cacheBytes: cacheBytes)
        let result: ReplayResult
        do throws(ReplayError) {
            let replay = try Replay(view, from: start)
            switch point {
            case nil: result = try replay.run()
            case .sequence(let sequence): result = try replay.run(limit: sequence)
            case .time(let time): result = try replay.run(stop: { $0.time > time })
            }
        } catch { throw OpenError(error) }
        if case .sequence(let sequence) = point, view.sequence < sequence {
            throw OpenError(
                .noSuchPoint, "\(device.name): sequence \(sequence) is not there yet; the last is \(view.sequence)")
        }
        return (view, result)
    }
}
