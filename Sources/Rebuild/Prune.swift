// Prune: a tree without the nodes that are lost. Inner nodes on the way to them are written anew, to free blocks.
//
//   root ─┬─ inner ─┬─ leaf                      root' ─┬─ inner' ── leaf
//         │         └─ (lost)            ─►             └─ inner
//         └─ inner
//
// What was in a lost node is known by its bounds only: from its own separator to the next.

import Check
import Device
import Format
import Memory

struct LostRange {
    let lower: Key
    /// Nil: to the end.
    let upper: Key?
    let block: BlockNumber
    let text: String
}

final class Prune {
    private let device: any BlockDevice
    private let id: FilesystemID
    private let birth: SequenceNumber
    private let pick: () throws -> BlockNumber
    private var seen = Set<UInt64>()
    private(set) var lost: [LostRange] = []

    init(_ device: any BlockDevice, id: FilesystemID, birth: SequenceNumber, pick: @escaping () throws -> BlockNumber) {
        self.device = device
        self.id = id
        self.birth = birth
        self.pick = pick
    }

    /// The tree's root without what is lost; nil when nothing is left.
    func prune(_ root: ChildReference, level: UInt8) throws -> ChildReference? {
        guard level <= NodeLayout.plausibleLevel else { return nil }
        return try node(root, level, lower: Key.first, upper: nil)
    }

    private func node(_ reference: ChildReference, _ level: UInt8, lower: Key, upper: Key?) throws -> ChildReference? {
        func lose(_ text: String) -> ChildReference? {
            lost.append(LostRange(lower: lower, upper: upper, block: reference.address, text: text))
            return nil
        }
        let buffer = AlignedBuffer(count: blockSize)
        defer { withExtendedLifetime(buffer) {} }
        let page = buffer.bytes
        guard reference.address.value < device.blockCount, seen.insert(reference.address.value).inserted else {
            return lose("tree node at \(reference.address): outside of the image, or there twice")
        }
        do throws(DeviceError) { try device.read(reference.address, into: page) } catch { return lose(error.description) }
        do throws(FormatError) {
            try NodeLayout.validate(page, kind: .main, id: id, expected: reference, level: level)
        } catch { return lose(error.description) }

        let count = NodeLayout.count(page)
        var items = (0..<count).map { (key: NodeLayout.key(page, $0), value: NodeLayout.value(page, $0).array) }
        var changed = false
        if level > 0 { items[0].key = lower }
        let inside = items.filter { !($0.key < lower) && (upper == nil || $0.key < upper!) }
        if inside.count < items.count {
            _ = lose("\(items.count - inside.count) items that belong elsewhere")
            items = inside
            changed = true
        }
        if level > 0 {
            var left: [(key: Key, value: [UInt8])] = []
            for index in items.indices {
                let child = items[index].value.withRawBytes { ChildReference($0) }
                let next = index + 1 < items.count ? items[index + 1].key : upper
                guard let kept = try node(child, level - 1, lower: items[index].key, upper: next) else {
                    changed = true
                    continue
                }
                if kept != child {
                    changed = true
                    items[index].value.withRawBytes { kept.store($0) }
                }
                left.append(items[index])
            }
            items = left
            // The first takes what is smaller as well.
            if !items.isEmpty { items[0].key = lower }
        }
        if items.isEmpty { return nil }
        return changed ? try write(items, level) : reference
    }

    /// An empty tree.
    func emptyRoot() throws -> ChildReference { try write([], 0) }

    private func write(_ items: [(key: Key, value: [UInt8])], _ level: UInt8) throws -> ChildReference {
        let buffer = AlignedBuffer(count: blockSize)
        defer { withExtendedLifetime(buffer) {} }
        let page = buffer.bytes
        NodeLayout.initialize(page, kind: .main, level: level, id: id)
        var heap = blockSize
        for (index, item) in items.enumerated() {
            heap -= item.value.count
            let at = NodeLayout.header + index * NodeLayout.slot
            page.copy(item.value, to: heap)
            page.set(u64: item.key.high, at: at)
            page.set(u64: item.key.low, at: at + 8)
            page.set(u16: UInt16(heap), at: at + 16)
            page.set(u16: UInt16(item.value.count), at: at + 18)
        }
        page.set(u16: UInt16(items.count), at: 26)
        page.set(u16: UInt16(heap), at: 28)
        let at = try pick()
        let crc = NodeLayout.seal(page, address: at, birth: birth)
        try device.write(at, page)
        return ChildReference(address: at, birth: birth, crc: crc)
    }
}
