// NodePage: finding, placing and removing items within one node (layout and invariants: Format/NodeLayout.swift).

import Format
import Memory

enum NodePage {
    /// First item whose key is not below `key`.
    @inline(__always) static func lowerBound(_ page: RawBytes, _ key: Key) -> Int {
        var low = 0
        var high = NodeLayout.count(page)
        while low < high {
            let middle = (low + high) >> 1
            if NodeLayout.key(page, middle) < key { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// The child that `key` belongs to: the last whose key is not above it (the first child takes the rest).
    @inline(__always) static func childIndex(_ page: RawBytes, _ key: Key) -> Int {
        var low = 0
        var high = NodeLayout.count(page)
        while low < high {
            let middle = (low + high) >> 1
            if key < NodeLayout.key(page, middle) { high = middle } else { low = middle + 1 }
        }
        return max(low - 1, 0)
    }

    /// Bytes that items take, slots included.
    @inline(__always) static func used(_ page: RawBytes) -> Int {
        NodeLayout.count(page) * NodeLayout.slot + blockSize - NodeLayout.heapStart(page) - NodeLayout.garbage(page)
    }

    @inline(__always) static func fits(_ page: RawBytes, valueLength: Int) -> Bool {
        used(page) + NodeLayout.slot + valueLength <= NodeLayout.capacity
    }

    /// Makes room for an item at `index` (which must fit) and returns its value's bytes, to be filled in whole.
    static func place(_ page: RawBytes, at index: Int, key: Key, valueLength: Int) -> RawBytes {
        let count = NodeLayout.count(page)
        let slotsEnd = NodeLayout.header + count * NodeLayout.slot
        if slotsEnd + NodeLayout.slot + valueLength > NodeLayout.heapStart(page) { compact(page) }
        // An empty value lies nowhere; at the page's end it stays inside of the heap however that shrinks (N2).
        let offset = valueLength == 0 ? blockSize : NodeLayout.heapStart(page) - valueLength
        let at = NodeLayout.header + index * NodeLayout.slot
        page.move(from: at, to: at + NodeLayout.slot, length: slotsEnd - at)
        page.set(u64: key.high, at: at)
        page.set(u64: key.low, at: at + 8)
        page.set(u16: UInt16(offset), at: at + 16)
        page.set(u16: UInt16(valueLength), at: at + 18)
        page.set(u16: UInt16(count + 1), at: 26)
        if valueLength > 0 { page.set(u16: UInt16(offset), at: 28) }
        return page.slice(offset, valueLength)
    }

    static func remove(_ page: RawBytes, at index: Int) {
        let count = NodeLayout.count(page)
        let at = NodeLayout.header + index * NodeLayout.slot
        let offset = Int(page.u16(at: at + 16))
        let length = Int(page.u16(at: at + 18))
        if length > 0 && offset == NodeLayout.heapStart(page) {
            page.set(u16: UInt16(offset + length), at: 28)
        } else {
            page.set(u16: UInt16(NodeLayout.garbage(page) + length), at: 30)
        }
        page.move(
            from: at + NodeLayout.slot, to: at,
            length: NodeLayout.header + count * NodeLayout.slot - at - NodeLayout.slot)
        page.set(u16: UInt16(count - 1), at: 26)
        if count == 1 {
            page.set(u16: UInt16(blockSize), at: 28)
            page.set(u16: 0, at: 30)
        }
    }

    static func setKey(_ page: RawBytes, _ index: Int, _ key: Key) {
        let at = NodeLayout.header + index * NodeLayout.slot
        page.set(u64: key.high, at: at)
        page.set(u64: key.low, at: at + 8)
    }

    /// Appends items `range` of `source` behind those of `page`; they must fit and belong there.
    static func append(_ page: RawBytes, from source: RawBytes, _ range: Range<Int>) {
        for index in range {
            let value = NodeLayout.value(source, index)
            place(page, at: NodeLayout.count(page), key: NodeLayout.key(source, index), valueLength: value.count).copy(value)
        }
    }

    /// Keeps the first `count` items.
    static func truncate(_ page: RawBytes, to count: Int) {
        var garbage = NodeLayout.garbage(page)
        for index in count..<NodeLayout.count(page) { garbage += NodeLayout.value(page, index).count }
        page.set(u16: UInt16(count), at: 26)
        page.set(u16: UInt16(garbage), at: 30)
        compact(page)
    }

    /// Pushes all values to the end of the page, in the order of their slots.
    static func compact(_ page: RawBytes) {
        withUnsafeTemporaryAllocation(byteCount: blockSize, alignment: 8) { scratch in
            // The scratch copy lives for this call only.
            let old = RawBytes(base: scratch.baseAddress!, count: blockSize)
            old.copy(page)
            var heap = blockSize
            for index in 0..<NodeLayout.count(old) {
                let value = NodeLayout.value(old, index)
                if value.count == 0 { continue }
                heap -= value.count
                page.copy(value, to: heap)
                page.set(u16: UInt16(heap), at: NodeLayout.header + index * NodeLayout.slot + 16)
            }
            page.set(u16: UInt16(heap), at: 28)
            page.set(u16: 0, at: 30)
        }
    }
}
