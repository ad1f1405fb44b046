// Formatter: a new filesystem: sequence 0, an empty root directory, one journal chunk opened and its successor chosen.
//
// The superblock slots are written last, after a flush: until then the image is what it was, as far as anybody who looks for a
// superblock can tell, save for blocks that this code has already overwritten.

public import Device
public import Format
import Glibc
import Journal
import Memory
import Space
import Tree

public struct FormatOptions: Sendable {
    public let label: String
    public let id: FilesystemID
    public let seed: HashSeed
    public let nonce: UInt64
    public let created: Timestamp
    public var uid: UInt32 = 0
    public var gid: UInt32 = 0

    public init(label: String, id: FilesystemID, seed: HashSeed, nonce: UInt64, created: Timestamp) {
        self.label = label
        self.id = id
        self.seed = seed
        self.nonce = nonce
        self.created = created
    }
}

public enum Formatter {
    /// Blocks of the smallest image: 64 MiB.
    public static let minimumBlocks: UInt64 = 16384

    /// Makes a filesystem that fills the device.
    @discardableResult
    public static func format(_ device: any BlockDevice, _ options: FormatOptions) throws(OpenError) -> Superblock {
        guard device.blockCount >= minimumBlocks else {
            throw OpenError(.unsupported, "\(device.name): too small: \(device.blockCount) blocks of 4 KiB, \(minimumBlocks) needed")
        }
        guard device.blockCount <= Superblock.maximumBlocks else { throw OpenError(.unsupported, "\(device.name): too large") }
        do throws(Space.Failure) { return try write(device, options) } catch { throw OpenError(error) }
    }

    private static func write(_ device: any BlockDevice, _ options: FormatOptions) throws(Space.Failure) -> Superblock {
        let blockCount = device.blockCount
        let chunkBlocks: UInt32 = blockCount < 1 << 18 ? 256 : 1024
        let map = SpaceMap.empty(blockCount: blockCount)
        let space = Space(
            map: map, tree: Tree(cache: Space.makeCache(), device: device, kind: .space, id: options.id), device: device,
            id: options.id)
        space.chunkBlocks = UInt64(chunkBlocks)
        let lock = Lock()
        func take(_ start: UInt64, _ count: UInt64) throws(Space.Failure) {
            do throws(SpaceError) {
                try map.claim(BlockRun(start: BlockNumber(start), count: count), .space)
            } catch { throw .damaged(error.description) }
        }
        try take(0, Superblock.reservedBlocks)
        try take(blockCount - 1, 1)
        // What a full host must not be able to take away: the reserve, the journal, and what is written here.
        let reserve = VolumeLimits(blockCount: blockCount, chunkBlocks: chunkBlocks, cacheBytes: .max).reserve + 4 * Int(chunkBlocks)
        try space.backWhatIsUsed(lock: lock)
        try space.back(atLeast: reserve, lock: lock)
        guard !space.hostIsFull else {
            throw .device(
                DeviceError(
                    .allocate, errno: ENOSPC,
                    "\(device.name): the disk that holds the image has no room for journal and reserve (\(reserve * blockSize >> 20) MiB)"))
        }
        guard let chunk = map.allocateChunk(UInt64(chunkBlocks)), let successor = map.allocateChunk(UInt64(chunkBlocks)) else {
            throw .damaged("no space for the journal")
        }

        space.openedChunks[0] = ChunkItem(address: chunk, first: SequenceNumber(1), epoch: 1)
        let tree = Tree(
            cache: PageCache(limit: 64, reserved: 1024), device: device, kind: .main, id: options.id)
        var root = InodeItem(mode: 0o040755, uid: options.uid, gid: options.gid, links: 2, time: options.created)
        root.parent = .root
        do throws(TreeError) {
            root.store(try tree.put(Key(.root, .inode), count: InodeItem.size))
        } catch { throw Space.Failure(error) }

        let position = JournalPosition(
            chunk: chunk, serial: 0, block: 1, epoch: 1, nonce: options.nonce, chain: options.nonce, next: SequenceNumber(1))
        let none = JournalPosition(
            chunk: BlockNumber(0), serial: 0, block: 0, epoch: 0, nonce: 0, chain: 0, next: SequenceNumber(0))
        let frozen = tree.freeze()
        var frozenSpace = space.freeze()
        let nodes = try space.take(.node, frozen.count, &frozenSpace, lock: lock)
        do throws(DeviceError) {
            try Volume.zero(chunk, count: UInt64(chunkBlocks), device)
            try Volume.zero(successor, count: UInt64(chunkBlocks), device)
            let page = AlignedBuffer(count: blockSize)
            ChunkHeader(position: position, successor: successor, cut: none).store(page.bytes, id: options.id)
            try device.write(chunk, page.bytes)
            try frozen.write(tree, to: nodes, birth: SequenceNumber(0)) { (block, bytes) throws(DeviceError) in
                try device.write(block, bytes)
            }
        } catch { throw .device(error) }
        let item = CheckpointItem(
            sequence: SequenceNumber(0), time: options.created, root: frozen.sealedRoot, rootLevel: 0, nextInode: 2, inodes: 1,
            dataBlocks: 0, journal: position)
        let state = try space.write(item, deadNodes: [], &frozenSpace, lock: lock)

        var superblock = Superblock(
            id: options.id, label: options.label, blockCount: blockCount, chunkBlocks: chunkBlocks, seed: options.seed,
            nonce: options.nonce, created: options.created, checkpoint: state.checkpoint, spaceRoot: state.root)
        superblock.spaceLevel = state.level
        superblock.pendingList = state.pendingList
        superblock.pendingCRC = state.pendingCRC
        superblock.flags = Superblock.flagClean
        do throws(DeviceError) {
            try device.flush()
            for slot in [0, 1] {
                superblock.generation = UInt64(slot) + 1
                try Volume.writeSlot(superblock, slot: slot, device)
            }
            try writeIdentity(superblock, device)
        } catch { throw .device(error) }
        return superblock
    }

    /// The copy in the last block: identity and geometry, no roots.
    private static func writeIdentity(_ superblock: Superblock, _ device: any BlockDevice) throws(DeviceError) {
        let page = AlignedBuffer(count: blockSize)
        superblock.identity.store(page.bytes, slot: 2)
        try device.write(BlockNumber(superblock.blockCount - 1), page.bytes)
        try device.flush()
    }
}
