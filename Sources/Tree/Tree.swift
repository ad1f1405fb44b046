// Tree: a copy-on-write B+tree over a page cache. The main tree and the space tree are both one of these.
//
// A node in memory is
//   clean    bound to its block in the cache, evictable; its parent refers to it by address
//   dirty    changed in this epoch; not bound, not evictable; its parent refers to it by slot ("virtual" reference)
//   frozen   dirty in an epoch that a checkpoint is writing out; nobody changes it any more
//
//             change                     freeze                     finish (checkpoint durable)
//   clean ───────────► dirty (in place) ───────► frozen ──────────────────────────────────────► clean
//     │                  ▲                          │ change                                 
//     └ its block is     └──────── copy ────────────┘  the frozen page is superseded: once written
//       now dead                                       it is dead at once
//
// (T1) The parent of a dirty node is dirty (of the same or a later epoch), up to the root.
// (T2) No clean node refers to a slot; no node refers to a superseded one.
// (T3) Blocks replaced since the last freeze are in `deadNodes` exactly once each.
// (T4) Keys of an inner node's slot are no greater than any key below it; but the first stands for the beginning of the node's
//      range, whatever it says, and is put right before the node is changed.
//
// Values are lent as RawBytes into the cache: valid until the next change of the tree or `trim` of the cache. Not
// thread-safe: the owner's lock. Device I/O happens only while `mayRead` is set; else a missing node is thrown, so that
// the caller can drop its lock, read it with `readMissing` and start over (invariant 13).

public import Device
public import Format
public import Memory

public enum TreeError: Error, Sendable {
    /// The node is not in memory and `mayRead` is off.
    case missing(ChildReference, level: UInt8)
    case damaged(FormatError)
    case device(DeviceError)
}

public final class Tree: @unchecked Sendable {
    public let cache: PageCache
    public let device: any BlockDevice
    public let kind: NodeLayout.Kind
    public let id: FilesystemID

    /// The root; a virtual reference while it is dirty.
    public internal(set) var root: ChildReference
    public internal(set) var level: UInt8
    public var mayRead = true

    var epoch: UInt64 = 1
    /// Nodes dirty in this epoch.
    public internal(set) var dirtyCount = 0
    /// Clean nodes replaced since the last freeze: their blocks are needed by older roots only.
    public internal(set) var deadNodes: [ChildReference] = []

    // The way from the root to the leaf last descended to, by level.
    var pathSlot = [PageSlot](repeating: .none, count: Int(NodeLayout.maximumLevel) + 2)
    var pathIndex = [Int](repeating: 0, count: Int(NodeLayout.maximumLevel) + 2)

    static let virtualFlag: UInt64 = 1 << 63
    static let supersededFlag: UInt64 = 1 << 63

    /// Opens the tree at `root`.
    public init(
        cache: PageCache, device: any BlockDevice, kind: NodeLayout.Kind, id: FilesystemID, root: ChildReference, level: UInt8
    ) {
        self.cache = cache
        self.device = device
        self.kind = kind
        self.id = id
        self.root = root
        self.level = level
    }

    /// A new, empty tree: one dirty leaf.
    public init(cache: PageCache, device: any BlockDevice, kind: NodeLayout.Kind, id: FilesystemID) {
        self.cache = cache
        self.device = device
        self.kind = kind
        self.id = id
        level = 0
        root = ChildReference(address: BlockNumber(0), birth: SequenceNumber(0), crc: 0)
        root = Self.virtual(newNode(level: 0))
    }

    // MARK: nodes

    @inline(__always) static func virtual(_ slot: PageSlot) -> ChildReference {
        ChildReference(address: BlockNumber(virtualFlag | UInt64(slot.index)), birth: SequenceNumber(0), crc: 0)
    }
    @inline(__always) static func isVirtual(_ reference: ChildReference) -> Bool { reference.address.value & virtualFlag != 0 }
    @inline(__always) static func slot(_ reference: ChildReference) -> PageSlot {
        PageSlot(UInt32(truncatingIfNeeded: reference.address.value))
    }

    func newNode(level: UInt8) -> PageSlot {
        let slot = cache.allocate()
        NodeLayout.initialize(cache.page(slot), kind: kind, level: level, id: id)
        cache.setTag(slot, epoch)
        dirtyCount += 1
        return slot
    }

    /// The slot of a node in memory, or none.
    @inline(__always) func resident(_ reference: ChildReference) -> PageSlot {
        Self.isVirtual(reference) ? Self.slot(reference) : cache.lookup(reference.address.value)
    }

    @inline(__always) func resolve(_ reference: ChildReference, _ level: UInt8) throws(TreeError) -> PageSlot {
        let slot = resident(reference)
        return slot.isNone ? try load(reference, level) : slot
    }

    private func load(_ reference: ChildReference, _ level: UInt8) throws(TreeError) -> PageSlot {
        let slot = cache.allocate()
        // What the host has in memory is had sooner than the lock is dropped and taken again.
        if !device.readResident(reference.address, into: cache.page(slot)) || !isValid(cache.page(slot), reference, level) {
            do throws(TreeError) {
                guard mayRead else { throw .missing(reference, level: level) }
                try readNode(reference, level, into: cache.page(slot))
            } catch {
                cache.release(slot)
                throw error
            }
        }
        cache.bind(slot, to: reference.address.value)
        cache.setEvictable(slot, true)
        return slot
    }

    /// Reads and checks a node. Touches nothing shared, so it needs no lock.
    private func readNode(_ reference: ChildReference, _ level: UInt8, into page: RawBytes) throws(TreeError) {
        guard reference.address.value < device.blockCount else {
            throw .damaged(FormatError("tree node at \(reference.address): outside of the image"))
        }
        do throws(DeviceError) {
            try device.readCached(reference.address, into: page)
            if isValid(page, reference, level) { return }
            // What is wrong with it counts only if the medium says so.
            try device.read(reference.address, into: page)
        } catch { throw .device(error) }
        do throws(FormatError) {
            try NodeLayout.validate(page, kind: kind, id: id, expected: reference, level: level)
        } catch { throw .damaged(error) }
    }

    private func isValid(_ page: RawBytes, _ reference: ChildReference, _ level: UInt8) -> Bool {
        do throws(FormatError) {
            try NodeLayout.validate(page, kind: kind, id: id, expected: reference, level: level)
            return true
        } catch { return false }
    }

    /// Reads the node that `.missing` named, into `buffer` (one block), without the lock.
    public func readMissing(_ reference: ChildReference, level: UInt8, into buffer: RawBytes) throws(TreeError) {
        try readNode(reference, level, into: buffer)
    }

    /// Puts a node that `readMissing` delivered into the cache, with the lock held again.
    public func adopt(_ reference: ChildReference, _ buffer: RawBytes) {
        guard cache.lookup(reference.address.value).isNone else { return }
        let slot = cache.allocate()
        cache.page(slot).copy(buffer)
        cache.bind(slot, to: reference.address.value)
        cache.setEvictable(slot, true)
    }

    // MARK: looking up

    @inline(__always) private func leaf(_ key: Key) throws(TreeError) -> RawBytes {
        var reference = root
        var level = level
        while true {
            let page = cache.page(try resolve(reference, level))
            if level == 0 { return page }
            reference = ChildReference(NodeLayout.value(page, NodePage.childIndex(page, key)))
            level -= 1
        }
    }

    /// The value at `key`, or nil.
    public func find(_ key: Key) throws(TreeError) -> RawBytes? {
        let page = try leaf(key)
        let index = NodePage.lowerBound(page, key)
        guard index < NodeLayout.count(page), NodeLayout.key(page, index) == key else { return nil }
        return NodeLayout.value(page, index)
    }

    /// The first item whose key is not below `key`.
    public func next(_ key: Key) throws(TreeError) -> (key: Key, value: RawBytes)? {
        var key = key
        while true {
            // `bound` is where the next leaf begins: the nearest separator right of the way down.
            var bound: Key?
            var reference = root
            var level = level
            var page = cache.page(try resolve(reference, level))
            while level > 0 {
                let index = NodePage.childIndex(page, key)
                if index + 1 < NodeLayout.count(page) { bound = NodeLayout.key(page, index + 1) }
                reference = ChildReference(NodeLayout.value(page, index))
                level -= 1
                page = cache.page(try resolve(reference, level))
            }
            let index = NodePage.lowerBound(page, key)
            if index < NodeLayout.count(page) { return (NodeLayout.key(page, index), NodeLayout.value(page, index)) }
            guard let bound else { return nil }
            key = bound
        }
    }

    /// The last item whose key is not above `key`.
    public func previous(_ key: Key) throws(TreeError) -> (key: Key, value: RawBytes)? {
        // Leaves are never empty but for a lone root, so the item is in the leaf of `key` or the one left of it.
        var target = key
        while true {
            var leftSeparator: Key?
            var reference = root
            var level = level
            var page = cache.page(try resolve(reference, level))
            while level > 0 {
                let index = NodePage.childIndex(page, target)
                if index > 0 { leftSeparator = NodeLayout.key(page, index) }
                reference = ChildReference(NodeLayout.value(page, index))
                level -= 1
                page = cache.page(try resolve(reference, level))
            }
            var index = NodePage.lowerBound(page, target)
            if index == NodeLayout.count(page) || target < NodeLayout.key(page, index) { index -= 1 }
            if index >= 0 { return (NodeLayout.key(page, index), NodeLayout.value(page, index)) }
            guard let separator = leftSeparator, separator > Key.first else { return nil }
            target = separator.low > 0
                ? Key(high: separator.high, low: separator.low - 1) : Key(high: separator.high - 1, low: .max)
        }
    }

    /// Gives items from `key` on to `body` until it returns false. `body` must not change the tree.
    public func scan<E: Error>(
        from key: Key, mapping: (TreeError) -> E, _ body: (Key, RawBytes) throws(E) -> Bool
    ) throws(E) {
        var key = key
        while true {
            var bound: Key?
            var reference = root
            var level = level
            var page: RawBytes
            do throws(TreeError) {
                page = cache.page(try resolve(reference, level))
                while level > 0 {
                    let index = NodePage.childIndex(page, key)
                    if index + 1 < NodeLayout.count(page) { bound = NodeLayout.key(page, index + 1) }
                    reference = ChildReference(NodeLayout.value(page, index))
                    level -= 1
                    page = cache.page(try resolve(reference, level))
                }
            } catch { throw mapping(error) }
            for index in NodePage.lowerBound(page, key)..<NodeLayout.count(page) {
                guard try body(NodeLayout.key(page, index), NodeLayout.value(page, index)) else { return }
            }
            guard let bound else { return }
            key = bound
        }
    }

    // MARK: changing

    /// Descends to the leaf of `key`, making every node on the way dirty.
    private func dirtyPath(_ key: Key) throws(TreeError) {
        // All nodes first, so that an error leaves the tree as it was.
        _ = try leaf(key)
        var reference = root
        var level = level
        var slot = makeWritable(reference, resident(reference))
        root = Self.virtual(slot)
        pathSlot[Int(level)] = slot
        var lower = Key.first
        while level > 0 {
            let page = cache.page(slot)
            // The node may have inherited the range of a neighbour on its left since it was made (T4).
            if lower < NodeLayout.key(page, 0) { NodePage.setKey(page, 0, lower) }
            let index = NodePage.childIndex(page, key)
            pathIndex[Int(level)] = index
            lower = NodeLayout.key(page, index)
            let value = NodeLayout.value(page, index)
            reference = ChildReference(value)
            level -= 1
            slot = makeWritable(reference, resident(reference))
            Self.virtual(slot).store(value)
            pathSlot[Int(level)] = slot
        }
    }

    /// A slot holding the node, dirty in this epoch: itself, converted, or a copy (see the drawing above).
    @inline(__always) private func makeWritable(_ reference: ChildReference, _ slot: PageSlot) -> PageSlot {
        if Self.isVirtual(reference) {
            if cache.tag(slot) == epoch { return slot }
            let copy = cache.allocate()
            cache.page(copy).copy(cache.page(slot))
            cache.setTag(slot, cache.tag(slot) | Self.supersededFlag)
            cache.setTag(copy, epoch)
            dirtyCount += 1
            return copy
        }
        cache.unbind(slot)
        cache.setTag(slot, epoch)
        dirtyCount += 1
        deadNodes.append(reference)
        return slot
    }

    /// Gives up a node that has no items left or was merged away; its parent no longer refers to it.
    private func discard(_ slot: PageSlot) {
        // Only ever called on nodes made writable just before.
        cache.release(slot)
        dirtyCount -= 1
    }

    /// The value at `key`, to be changed in place; nil when there is none (the path is then dirty without need).
    public func update(_ key: Key) throws(TreeError) -> RawBytes? {
        try dirtyPath(key)
        let page = cache.page(pathSlot[0])
        let index = NodePage.lowerBound(page, key)
        guard index < NodeLayout.count(page), NodeLayout.key(page, index) == key else { return nil }
        return NodeLayout.value(page, index)
    }

    /// Inserts an item or replaces the one at `key`; the returned bytes are undefined and must be filled in whole.
    public func put(_ key: Key, count: Int) throws(TreeError) -> RawBytes {
        precondition(count <= NodeLayout.longestValue)
        try dirtyPath(key)
        let page = cache.page(pathSlot[0])
        let index = NodePage.lowerBound(page, key)
        if index < NodeLayout.count(page), NodeLayout.key(page, index) == key {
            let value = NodeLayout.value(page, index)
            if value.count == count { return value }
            NodePage.remove(page, at: index)
        }
        return insert(level: 0, key, count)
    }

    /// Inserts into the node of the current path at `level`, splitting as far up as needed.
    private func insert(level: Int, _ key: Key, _ count: Int) -> RawBytes {
        while true {
            let page = cache.page(pathSlot[level])
            let index = NodePage.lowerBound(page, key)
            if NodePage.fits(page, valueLength: count) {
                return NodePage.place(page, at: index, key: key, valueLength: count)
            }
            let left = pathSlot[level]
            let right = newNode(level: UInt8(level))
            let target = cache.page(right)
            // Appending at the right end splits off nothing, so that ascending insertion fills nodes; else half the bytes go.
            let total = NodeLayout.count(page)
            var keep = total
            if index < total || total < 2 {
                let half = NodePage.used(page) / 2
                var bytes = 0
                keep = 0
                while keep < total - 1 && bytes < half {
                    bytes += NodeLayout.slot + NodeLayout.value(page, keep).count
                    keep += 1
                }
                keep = max(keep, 1)
            }
            let separator: Key
            if keep == total {
                separator = key
            } else {
                NodePage.append(target, from: page, keep..<total)
                NodePage.truncate(page, to: keep)
                separator = NodeLayout.key(target, 0)
            }
            if level == Int(self.level) {
                // The root splits: a new root above it. Its first key is the smallest there is (T4).
                precondition(self.level < NodeLayout.maximumLevel)
                let top = newNode(level: self.level + 1)
                Self.virtual(left).store(
                    NodePage.place(cache.page(top), at: 0, key: Key.first, valueLength: ChildReference.size))
                self.level += 1
                root = Self.virtual(top)
                pathSlot[level + 1] = top
            }
            Self.virtual(right).store(insert(level: level + 1, separator, ChildReference.size))
            if !(key < separator) { pathSlot[level] = right }
        }
    }

    /// Removes the item at `key`; false when there was none.
    @discardableResult public func remove(_ key: Key) throws(TreeError) -> Bool {
        guard try find(key) != nil else { return false }
        try dirtyPath(key)
        let page = cache.page(pathSlot[0])
        NodePage.remove(page, at: NodePage.lowerBound(page, key))
        shrink(level: 0)
        return true
    }

    /// After a removal at `level`: drops an empty node, merges a small one with a neighbour that is in memory, and takes
    /// away roots of one child.
    private func shrink(level: Int) {
        let slot = pathSlot[level]
        let page = cache.page(slot)
        if level == Int(self.level) {
            while self.level > 0 {
                let top = cache.page(Self.slot(root))
                guard NodeLayout.count(top) == 1 else { return }
                let child = ChildReference(NodeLayout.value(top, 0))
                // The child must be in memory to become a root that can be changed without asking; it need not be dirty.
                discard(Self.slot(root))
                root = child
                self.level -= 1
                guard Self.isVirtual(root), cache.tag(Self.slot(root)) == epoch else { return }
            }
            return
        }
        let parent = cache.page(pathSlot[level + 1])
        let index = pathIndex[level + 1]
        if NodeLayout.count(page) == 0 {
            removeChild(parent, index)
            discard(slot)
            shrink(level: level + 1)
            return
        }
        guard NodePage.used(page) < NodeLayout.capacity / 4 else { return }
        for neighbour in [index + 1, index - 1] where neighbour >= 0 && neighbour < NodeLayout.count(parent) {
            let reference = ChildReference(NodeLayout.value(parent, neighbour))
            let found = resident(reference)
            guard !found.isNone,
                NodePage.used(cache.page(found)) + NodePage.used(page) <= NodeLayout.capacity * 3 / 4
            else { continue }
            let other = makeWritable(reference, found)
            Self.virtual(other).store(NodeLayout.value(parent, neighbour))
            let (left, right) = neighbour > index ? (slot, other) : (other, slot)
            // What was a first separator, and might be anything up to the range's beginning, now stands between two children (T4).
            if level > 0 { NodePage.setKey(cache.page(right), 0, NodeLayout.key(parent, max(index, neighbour))) }
            NodePage.append(cache.page(left), from: cache.page(right), 0..<NodeLayout.count(cache.page(right)))
            removeChild(parent, max(index, neighbour))
            discard(right)
            shrink(level: level + 1)
            return
        }
    }

    /// Removes a child reference. Its key range falls to its left neighbour, or, for the first, to its right one (T4).
    private func removeChild(_ parent: RawBytes, _ index: Int) {
        if index == 0 && NodeLayout.count(parent) > 1 { NodePage.setKey(parent, 1, NodeLayout.key(parent, 0)) }
        NodePage.remove(parent, at: index)
    }
}
