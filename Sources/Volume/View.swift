// View: the filesystem at one sequence number: a tree, the data pages that are newer than their homes, and counters.
//
//   live      the volume's own; records are applied to it as they are appended
//   past      a checkpoint's tree with records applied in memory up to the wanted sequence (`at=`, log, digest)
//   scratch   a past view that operations may change; nothing of it is ever written
//
// All of them change by `apply` alone (Apply.swift), so the same records give the same state (P6). What applying frees
// and takes is left in `freed` and `claimed` for whoever keeps the space state; a past view ignores both.

public import Device
public import Format
import Memory
public import Space
public import Tree

public final class View: @unchecked Sendable {
    public let tree: Tree
    public let pages: DataPages
    public let device: any BlockDevice
    public let superblock: Superblock

    /// Last record applied.
    public internal(set) var sequence: SequenceNumber
    /// Next inode number to give out.
    public internal(set) var nextInode: UInt64
    /// Inodes in existence, orphans included.
    public internal(set) var inodes: UInt64
    /// Blocks of data that belong to files.
    public internal(set) var dataBlocks: UInt64

    /// Data that died by records applied since the owner last took the list.
    public var freed: [DeadEntry] = []
    /// What records cloned since then.
    public var shared: [Sharing] = []
    /// Deaths and clones that the next checkpoint has to settle.
    public var unsettled: Int { freed.count + shared.count }
    /// Blocks that records put to use, while `recordsClaims` is set.
    public var claimed: [(start: BlockNumber, count: UInt64)] = []
    public var recordsClaims = false

    let scratch = AlignedBuffer(count: 2 * blockSize)

    public init(
        tree: Tree, pages: DataPages, device: any BlockDevice, superblock: Superblock, checkpoint: CheckpointItem
    ) {
        self.tree = tree
        self.pages = pages
        self.device = device
        self.superblock = superblock
        sequence = checkpoint.sequence
        nextInode = checkpoint.nextInode
        inodes = checkpoint.inodes
        dataBlocks = checkpoint.dataBlocks
    }

    /// Opens the state of `checkpoint`, reading nothing yet. `cacheBytes` is shared between nodes and data.
    public convenience init(
        checkpoint: CheckpointItem, superblock: Superblock, device: any BlockDevice, cacheBytes: Int
    ) {
        let pages = max(cacheBytes / blockSize, 1024)
        // A twelfth is left for data beyond their third: what is dirty, and what waits to be posted, is kept whatever the limit.
        let tree = Tree(
            cache: PageCache(limit: pages * 7 / 12), device: device, kind: .main, id: superblock.id, root: checkpoint.root,
            level: checkpoint.rootLevel)
        self.init(
            tree: tree, pages: DataPages(limit: pages / 3), device: device, superblock: superblock, checkpoint: checkpoint)
    }

    /// Lets cached pages go that are over the limit. Between operations only.
    @inline(__always) public func trim() {
        tree.cache.trim()
        pages.cache.trim()
    }

    // MARK: tree access with this layer's errors

    @inline(__always) func find(_ key: Key) throws(ViewError) -> RawBytes? {
        do throws(TreeError) { return try tree.find(key) } catch { throw .tree(error) }
    }
    @inline(__always) func next(_ key: Key) throws(ViewError) -> (key: Key, value: RawBytes)? {
        do throws(TreeError) { return try tree.next(key) } catch { throw .tree(error) }
    }
    @inline(__always) func previous(_ key: Key) throws(ViewError) -> (key: Key, value: RawBytes)? {
        do throws(TreeError) { return try tree.previous(key) } catch { throw .tree(error) }
    }
    @inline(__always) func put(_ key: Key, count: Int) throws(ViewError) -> RawBytes {
        do throws(TreeError) { return try tree.put(key, count: count) } catch { throw .tree(error) }
    }
    @inline(__always) func update(_ key: Key) throws(ViewError) -> RawBytes? {
        do throws(TreeError) { return try tree.update(key) } catch { throw .tree(error) }
    }
    @discardableResult @inline(__always) func remove(_ key: Key) throws(ViewError) -> Bool {
        do throws(TreeError) { return try tree.remove(key) } catch { throw .tree(error) }
    }

    // MARK: inodes

    /// The inode's item in place, checked; nil when there is none.
    @inline(__always) func inodeBytes(_ inode: InodeNumber) throws(ViewError) -> RawBytes? {
        guard let bytes = try find(Key(inode, .inode)) else { return nil }
        do throws(FormatError) { try InodeItem.validate(bytes, inode: inode) } catch { throw .damaged(error.description) }
        return bytes
    }

    public func item(_ inode: InodeNumber) throws(ViewError) -> InodeItem? { try inodeBytes(inode).map { InodeItem($0) } }

    /// The inode's attributes, or `.stale`.
    public func attributes(_ inode: InodeNumber) throws(ViewError) -> Attributes {
        guard let bytes = try inodeBytes(inode) else { throw .refused(.stale) }
        return Attributes(inode: inode, item: InodeItem(bytes))
    }

    func directory(_ inode: InodeNumber) throws(ViewError) -> InodeItem {
        let item = try attributes(inode).item
        guard item.isDirectory else { throw .refused(.notDirectory) }
        return item
    }
}
