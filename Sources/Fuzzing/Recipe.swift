// Recipe: how a mutant is made from a base image, as a line of text:
//
//   worked mend; poke 17 128 8 ffffffff; copy 4 9 here; swap 5 12; zero 3; cut 9000
//
//   poke PART OFFSET WIDTH VALUE   an integer of 1, 2, 4 or 8 bytes (value hexadecimal)
//   copy PART PART [here]          the second gets the first's bytes; `here`: made to say that it belongs where it lies
//   swap PART PART                 each lies where the other was
//   graft PART ITEM PART ITEM      the item of the first (a record of a frame, the value of a node's item) becomes that of the second
//   zero PART
//   cut BLOCKS                     the image ends there, or is that long, with holes
//
// Parts are numbered as in the base's ImageMap. With `mend` all checksums and hashes that depend on what was changed are put right.

import Device
import Format
import Memory

public struct Recipe: Sendable, Equatable, CustomStringConvertible {
    public enum Step: Sendable, Equatable {
        case poke(part: Int, offset: Int, width: Int, value: UInt64)
        case copy(from: Int, to: Int, here: Bool)
        case swap(Int, Int)
        case graft(part: Int, item: Int, from: Int, other: Int)
        case zero(Int)
        case cut(UInt64)
    }
    public var base: BaseImage
    public var mends: Bool
    public var steps: [Step]

    public init(base: BaseImage, mends: Bool, steps: [Step]) {
        self.base = base
        self.mends = mends
        self.steps = steps
    }

    public var description: String {
        ([base.label + (mends ? " mend" : "")] + steps.map { step in
            switch step {
            case .poke(let part, let offset, let width, let value): "poke \(part) \(offset) \(width) \(String(value, radix: 16))"
            case .copy(let from, let to, let here): "copy \(from) \(to)" + (here ? " here" : "")
            case .swap(let a, let b): "swap \(a) \(b)"
            case .graft(let part, let item, let from, let other): "graft \(part) \(item) \(from) \(other)"
            case .zero(let part): "zero \(part)"
            case .cut(let blocks): "cut \(blocks)"
            }
        }).joined(separator: "; ")
    }

    /// From its description; nil when it is none.
    public init?(_ text: String) {
        let phrases = text.split(separator: ";").map { $0.split(separator: " ").map(String.init) }
        guard let first = phrases.first, let base = BaseImage.allCases.first(where: { $0.label == first.first }),
            first.count == 1 || first.count == 2 && first[1] == "mend"
        else { return nil }
        var steps: [Step] = []
        for words in phrases.dropFirst() {
            let numbers = words.dropFirst().compactMap { Int($0) }
            switch words.first {
            case "poke":
                guard words.count == 5, let part = Int(words[1]), let offset = Int(words[2]), let width = Int(words[3]),
                    let value = UInt64(words[4], radix: 16)
                else { return nil }
                steps.append(.poke(part: part, offset: offset, width: width, value: value))
            case "copy" where numbers.count == 2: steps.append(.copy(from: numbers[0], to: numbers[1], here: words.last == "here"))
            case "swap" where numbers.count == 2: steps.append(.swap(numbers[0], numbers[1]))
            case "graft" where numbers.count == 4:
                steps.append(.graft(part: numbers[0], item: numbers[1], from: numbers[2], other: numbers[3]))
            case "zero" where numbers.count == 1: steps.append(.zero(numbers[0]))
            case "cut" where numbers.count == 1: steps.append(.cut(UInt64(max(numbers[0], 0))))
            default: return nil
            }
        }
        self.init(base: base, mends: first.count == 2, steps: steps)
    }

    /// Makes the mutant; nil when a part does not exist.
    public func apply(_ map: ImageMap) -> MutantDisk? {
        var disk = map.base.copy()
        var changed: Set<Int> = []
        func edit(_ part: Int, _ body: (RawBytes) -> Void) -> Bool {
            guard map.parts.indices.contains(part) else { return false }
            var bytes = map.bytes(disk, map.parts[part])
            bytes.edit(body)
            bytes.withRawBytes { map.store(disk, map.parts[part], $0) }
            changed.insert(part)
            return true
        }
        for step in steps {
            switch step {
            case .poke(let part, let offset, let width, let value):
                guard edit(part, { bytes in
                    guard offset >= 0, [1, 2, 4, 8].contains(width), offset + width <= bytes.count else { return }
                    for index in 0..<width { bytes.set(u8: UInt8(truncatingIfNeeded: value >> UInt64(index * 8)), at: offset + index) }
                }) else { return nil }
            case .copy(let from, let to, let here):
                guard map.parts.indices.contains(from) else { return nil }
                let source = map.bytes(disk, map.parts[from])
                guard edit(to, { bytes in
                    bytes.zero()
                    bytes.copy(Array(source.prefix(bytes.count)))
                    if here { Self.settle(bytes, map.parts[to]) }
                }) else { return nil }
            case .swap(let a, let b):
                guard map.parts.indices.contains(a), map.parts.indices.contains(b) else { return nil }
                let (first, second) = (map.bytes(disk, map.parts[a]), map.bytes(disk, map.parts[b]))
                _ = edit(a) { $0.copy(Array(second.prefix($0.count))) }
                _ = edit(b) { $0.copy(Array(first.prefix($0.count))) }
            case .graft(let part, let item, let from, let other):
                guard map.parts.indices.contains(from) else { return nil }
                let source = map.bytes(disk, map.parts[from])
                guard edit(part, { bytes in source.withRawBytes { Self.graft(bytes, item, $0, other) } }) else { return nil }
            case .zero(let part): guard edit(part, { $0.zero() }) else { return nil }
            case .cut(let blocks):
                disk = MutantDisk(blockCount: min(blocks, 1 << 50), blocks: disk.contents.filter { $0.key < blocks })
            }
        }
        if mends { map.mend(disk, changed) }
        // Mending may have put something behind the end of a cut image.
        let end = disk.blockCount
        guard disk.contents.contains(where: { $0.key >= end }) else { return disk }
        return MutantDisk(blockCount: end, blocks: disk.contents.filter { $0.key < end })
    }

    // MARK: grafting

    /// Nothing happens where there is no such item, or no room.
    private static func graft(_ bytes: RawBytes, _ item: Int, _ source: RawBytes, _ other: Int) {
        switch (bytes.u32(at: 0), source.u32(at: 0)) {
        case (magicFrame, magicFrame): graftRecord(bytes, item, source, other)
        case (magicNode, magicNode): graftValue(bytes, item, source, other)
        default: break
        }
    }

    static func records(_ frame: RawBytes) -> [[UInt8]] {
        var result: [[UInt8]] = []
        var at = FrameHeader.size
        while at < frame.count, result.count < Int(frame.u32(at: 84)), let record = try? Record(frame.from(at)) {
            result.append(record.bytes.array)
            at += record.bytes.count
        }
        return result
    }

    /// The record keeps the number that is due in its place.
    private static func graftRecord(_ frame: RawBytes, _ item: Int, _ source: RawBytes, _ other: Int) {
        var all = records(frame)
        let others = records(source)
        guard all.indices.contains(item), others.indices.contains(other) else { return }
        var new = others[other]
        let number = all[item].withRawBytes { $0.u64(at: 8) }
        new.edit { $0.set(u64: number, at: 8) }
        all[item] = new
        let payload = all.reduce(0) { $0 + $1.count }
        guard FrameHeader.size + payload <= frame.count else { return }
        frame.zero(FrameHeader.size, frame.count - FrameHeader.size)
        var at = FrameHeader.size
        for record in all {
            frame.copy(record, to: at)
            at += record.count
        }
        frame.set(u32: UInt32(payload), at: 80)
    }

    private static func graftValue(_ page: RawBytes, _ item: Int, _ source: RawBytes, _ other: Int) {
        func items(_ page: RawBytes) -> [(key: Key, value: [UInt8])]? {
            let reference = ChildReference(address: NodeLayout.address(page), birth: NodeLayout.birth(page), crc: page.u32(at: 4))
            let id = FilesystemID(high: page.u64(at: 32), low: page.u64(at: 40))
            guard let kind = NodeLayout.Kind(rawValue: page.u8(at: 25)),
                (try? NodeLayout.validate(page, kind: kind, id: id, expected: reference, level: nil)) != nil
            else { return nil }
            return (0..<NodeLayout.count(page)).map { (NodeLayout.key(page, $0), NodeLayout.value(page, $0).array) }
        }
        guard var all = items(page), let others = items(source), all.indices.contains(item), others.indices.contains(other) else { return }
        all[item].value = others[other].value
        let values = all.reduce(0) { $0 + $1.value.count }
        guard NodeLayout.header + all.count * NodeLayout.slot + values <= blockSize else { return }
        page.zero(NodeLayout.header, blockSize - NodeLayout.header)
        var heap = blockSize
        for (index, entry) in all.enumerated() {
            heap -= entry.value.count
            page.copy(entry.value, to: heap)
            let at = NodeLayout.header + index * NodeLayout.slot
            page.set(u64: entry.key.high, at: at)
            page.set(u64: entry.key.low, at: at + 8)
            page.set(u16: UInt16(heap), at: at + 16)
            page.set(u16: UInt16(entry.value.count), at: at + 18)
        }
        page.set(u16: UInt16(heap), at: 28)
        page.set(u16: 0, at: 30)
    }

    /// Where a structure says that it lies.
    private static func settle(_ bytes: RawBytes, _ part: Part) {
        switch bytes.u32(at: 0) {
        case magicNode, magicDeadList, magicPending: bytes.set(u64: part.block, at: 8)
        case magicBitmap: bytes.set(u64: part.block, at: 16)
        case magicChunk: bytes.set(u64: part.block, at: 32)
        case magicFrame: bytes.set(u64: part.block, at: 40)
        default: break
        }
    }
}

extension BaseImage {
    public var label: String { "\(self)" }
}
