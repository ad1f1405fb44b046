// NodeWalk: a tree from root to leaves, every node checked against its parent: address, birth, checksum, level, and that its keys
// lie between the parent's separators. Leaves are read a run of neighbours at a time.
//
// It shares nothing with Tree but the format.
//
// (W1) A child is visited only when `claim` has agreed to its reference; levels fall by one at each step, so no damage makes the
//      walk endless.
// (W2) Keys are given to `leaf` in ascending order, whatever the nodes say: what breaks the order is reported and left out.

package import Device
package import Format
package import Memory

package struct Cancelled: Error {
    package init() {}
}

package enum NodeProblem {
    case damaged(String)
    case order(String)
}

package final class NodeWalk {
    private let device: any BlockDevice
    private let kind: NodeLayout.Kind
    private let id: FilesystemID
    private let isCancelled: () -> Bool
    /// One page for each level above the leaves.
    private var pages: [AlignedBuffer?] = Array(repeating: nil, count: Int(NodeLayout.maximumLevel) + 1)
    private static let batch = 128
    private let leaves = AlignedBuffer(count: batch << blockShift, zeroed: false)
    private(set) var nodes: UInt64 = 0

    /// Whether to go on to the node: its place is its own.
    package var claim: (ChildReference, UInt8) -> Bool = { _, _ in true }
    package var problem: (ChildReference, NodeProblem) -> Void = { _, _ in }
    /// A leaf whose items [from, to) are to be taken.
    package var leaf: (RawBytes, Range<Int>) -> Void = { _, _ in }

    package init(device: any BlockDevice, kind: NodeLayout.Kind, id: FilesystemID, isCancelled: @escaping () -> Bool) {
        self.device = device
        self.kind = kind
        self.id = id
        self.isCancelled = isCancelled
    }

    package func walk(_ root: ChildReference, level: UInt8) throws(Cancelled) {
        guard level <= NodeLayout.maximumLevel else {
            problem(root, .damaged("impossible level \(level)"))
            return
        }
        guard claim(root, level) else { return }
        let page = level == 0 ? leaves.bytes.slice(0, blockSize) : self.page(level)
        guard read(root, level, page) else { return }
        try visit(root, page, level, lower: Key.first, upper: nil)
    }

    private func page(_ level: UInt8) -> RawBytes {
        if pages[Int(level)] == nil { pages[Int(level)] = AlignedBuffer(count: blockSize) }
        return pages[Int(level)]!.bytes
    }

    private func read(_ reference: ChildReference, _ level: UInt8, _ page: RawBytes) -> Bool {
        do throws(DeviceError) { try device.read(reference.address, into: page) } catch {
            problem(reference, .damaged(error.description))
            return false
        }
        return check(reference, level, page)
    }

    private func check(_ reference: ChildReference, _ level: UInt8, _ page: RawBytes) -> Bool {
        nodes += 1
        do throws(FormatError) {
            try NodeLayout.validate(page, kind: kind, id: id, expected: reference, level: level)
            return true
        } catch {
            problem(reference, .damaged(error.description))
            return false
        }
    }

    /// A node that has been read and checked. Its keys belong into [lower, upper); the first separator of an inner node stands
    /// for `lower`, whatever it is.
    private func visit(_ reference: ChildReference, _ page: RawBytes, _ level: UInt8, lower: Key, upper: Key?) throws(Cancelled) {
        if isCancelled() { throw Cancelled() }
        let count = NodeLayout.count(page)
        var from = level > 0 ? min(1, count) : 0
        var to = count
        while from < to, NodeLayout.key(page, from) < lower { from += 1 }
        if let upper { while to > from, !(NodeLayout.key(page, to - 1) < upper) { to -= 1 } }
        if from > (level > 0 ? 1 : 0) || to < count {
            problem(reference, .order("keys from \(NodeLayout.key(page, 0)) on, where only [\(lower), \(upper ?? Key.last)) belong"))
        }
        guard level > 0 else {
            leaf(page, from..<to)
            return
        }
        // The first child takes what is left of the second separator.
        let children = level > 0 && count > 0 ? [0] + Array(from..<max(from, to)) : []
        func bounds(_ position: Int) -> (Key, Key?) {
            (position == 0 ? lower : NodeLayout.key(page, children[position]),
             position + 1 < children.count ? NodeLayout.key(page, children[position + 1]) : upper)
        }
        if level == 1 {
            try visitLeaves(children.map { ChildReference(NodeLayout.value(page, $0)) }, bounds)
            return
        }
        for position in children.indices {
            let child = ChildReference(NodeLayout.value(page, children[position]))
            guard claim(child, level - 1) else { continue }
            let below = self.page(level - 1)
            guard read(child, level - 1, below) else { continue }
            let (low, high) = bounds(position)
            try visit(child, below, level - 1, lower: low, upper: high)
        }
    }

    private func visitLeaves(_ children: [ChildReference], _ bounds: (Int) -> (Key, Key?)) throws(Cancelled) {
        var first = 0
        while first < children.count {
            let batch = Array(first..<min(first + Self.batch, children.count)).filter { claim(children[$0], 0) }
            // Where each lies in the buffer: by address, so that neighbours on disk are read at once.
            let order = batch.sorted { children[$0].address < children[$1].address }
            var slot = [Int: Int](minimumCapacity: order.count)
            var start = 0
            while start < order.count {
                var end = start + 1
                while end < order.count, children[order[end]].address.value == children[order[end - 1]].address.value + 1 { end += 1 }
                let bytes = leaves.bytes.slice(start << blockShift, (end - start) << blockShift)
                if (try? device.read(children[order[start]].address, into: bytes)) != nil {
                    for index in start..<end { slot[order[index]] = index }
                } else {
                    // One bad block must not hide its neighbours.
                    for index in start..<end {
                        let page = leaves.bytes.slice(index << blockShift, blockSize)
                        do throws(DeviceError) {
                            try device.read(children[order[index]].address, into: page)
                            slot[order[index]] = index
                        } catch { problem(children[order[index]], .damaged(error.description)) }
                    }
                }
                start = end
            }
            for position in batch {
                guard let index = slot[position] else { continue }
                let page = leaves.bytes.slice(index << blockShift, blockSize)
                guard check(children[position], 0, page) else { continue }
                let (low, high) = bounds(position)
                try visit(children[position], page, 0, lower: low, upper: high)
            }
            first += Self.batch
        }
    }

    /// The value at `key`, for messages: nil also when something on the way is damaged.
    package func find(_ key: Key, root: ChildReference, level: UInt8) -> [UInt8]? {
        guard level <= NodeLayout.maximumLevel else { return nil }
        let buffer = AlignedBuffer(count: blockSize)
        defer { withExtendedLifetime(buffer) {} }
        let page = buffer.bytes
        var reference = root
        var level = level
        while true {
            guard reference.address.value < device.blockCount, (try? device.read(reference.address, into: page)) != nil,
                (try? NodeLayout.validate(page, kind: kind, id: id, expected: reference, level: level)) != nil
            else { return nil }
            var index = -1
            for item in 0..<NodeLayout.count(page) where !(key < NodeLayout.key(page, item)) { index = item }
            if level == 0 {
                guard index >= 0, NodeLayout.key(page, index) == key else { return nil }
                return NodeLayout.value(page, index).array
            }
            reference = ChildReference(NodeLayout.value(page, max(index, 0)))
            level -= 1
        }
    }
}
