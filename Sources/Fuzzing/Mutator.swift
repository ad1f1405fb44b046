// Mutator: draws recipes. It knows where the fields of every structure lie and what values are at the edge of what they may hold.

import Device
import Format
import Memory

/// A field: where it lies in a part, and its bytes.
private struct Field {
    let offset: Int
    let width: Int
}

public struct Mutator {
    private let maps: [ImageMap]

    public init(_ maps: [ImageMap]) { self.maps = maps }

    /// The mutant of that number; the same for the same two numbers.
    public func recipe(seed: UInt64, number: UInt64) -> Recipe {
        var random = SeededRandom(seed: seed &* 0x9E37_79B9_7F4A_7C15 &+ number)
        let base = [BaseImage.fresh, .worked, .worked, .crashed, .crashed, .crashed].randomElement(using: &random)!
        let map = maps[base.rawValue]
        // Most get past all checksums; some are to be stopped by them.
        let mends = Int.random(in: 0..<12, using: &random) > 0
        let count = [1, 1, 1, 1, 2, 2, 3, 5].randomElement(using: &random)!
        var steps: [Recipe.Step] = []
        // A file of holes may be as long as it likes, and its superblocks say so.
        if Int.random(in: 0..<60, using: &random) == 0 {
            let blocks: UInt64 = [1 << 21, 1 << 30, 1 << 36, (1 << 36) + 1, 1 << 47].randomElement(using: &random)!
            steps.append(.cut(blocks))
            for slot in map.byKind[.slot]! { steps.append(.poke(part: slot, offset: 120, width: 8, value: blocks)) }
        }
        var last: Int?
        for _ in 0..<count {
            // Several changes of one part meet more often than of any two.
            let part = last != nil && Bool.random(using: &random) ? last! : Self.part(map, &random)
            last = part
            steps.append(Self.step(map, part, &random))
        }
        return Recipe(base: base, mends: mends, steps: steps)
    }

    private static func part(_ map: ImageMap, _ random: inout SeededRandom) -> Int {
        // Each kind alike, for there are many nodes and frames, and two slots; a data block can only be swapped or spoiled.
        let kinds = PartKind.allCases.filter { map.byKind[$0] != nil && $0 != .data }
        var kind = kinds.randomElement(using: &random)!
        switch Int.random(in: 0..<8, using: &random) {
        case 0, 1: kind = .frame
        case 2, 3: kind = .mainNode
        default: break
        }
        return (map.byKind[kind] ?? map.byKind[.slot]!).randomElement(using: &random)!
    }

    private static func step(_ map: ImageMap, _ part: Int, _ random: inout SeededRandom) -> Recipe.Step {
        switch Int.random(in: 0..<40, using: &random) {
        case 0: return .zero(part)
        case 1:
            let any = Int.random(in: 0..<map.parts.count, using: &random)
            return .swap(part, any)
        case 2...4:
            // Mostly of the same kind: past the magic number.
            let peers = Int.random(in: 0..<4, using: &random) > 0 ? map.byKind[map.parts[part].kind]! : Array(map.parts.indices)
            return .copy(from: peers.randomElement(using: &random)!, to: part, here: Int.random(in: 0..<4, using: &random) > 0)
        case 6...11 where [.frame, .mainNode, .spaceNode].contains(map.parts[part].kind):
            // A whole and valid item where another is due.
            func count(_ part: Int) -> Int {
                let bytes = map.bytes(map.base, map.parts[part])
                return bytes.withRawBytes { map.parts[part].kind == .frame ? Recipe.records($0).count : NodeLayout.count($0) }
            }
            let from = map.byKind[map.parts[part].kind]!.randomElement(using: &random)!
            return .graft(
                part: part, item: Int.random(in: 0..<max(count(part), 1), using: &random), from: from,
                other: Int.random(in: 0..<max(count(from), 1), using: &random))
        case 5 where Int.random(in: 0..<4, using: &random) == 0:
            return .cut([0, 1, 8, 9, 15, 16, 1000, 4096, 16383, 16385, UInt64.random(in: 0..<20_000, using: &random)].randomElement(using: &random)!)
        default:
            let bytes = map.bytes(map.base, map.parts[part])
            let fields: [Field] = bytes.withRawBytes { Self.fields(map.parts[part].kind, $0) }
            var field = fields.randomElement(using: &random) ?? Field(offset: 0, width: 8)
            if Int.random(in: 0..<10, using: &random) == 0 {
                let width = [1, 2, 4, 8].randomElement(using: &random)!
                field = Field(offset: Int.random(in: 0...(bytes.count - width), using: &random), width: width)
            }
            var old: UInt64 = 0
            for index in 0..<field.width { old |= UInt64(bytes[field.offset + index]) << UInt64(index * 8) }
            return .poke(part: part, offset: field.offset, width: field.width, value: value(map, old, field.width, &random))
        }
    }

    // MARK: values

    private static func value(_ map: ImageMap, _ old: UInt64, _ width: Int, _ random: inout SeededRandom) -> UInt64 {
        let mask = width == 8 ? UInt64.max : (1 << UInt64(width * 8)) - 1
        let bit = UInt64.random(in: 0..<UInt64(width * 8), using: &random)
        let drawn: UInt64 = switch Int.random(in: 0..<16, using: &random) {
        case 0: 0
        case 1: .max
        case 2: .max - UInt64.random(in: 0..<4200, using: &random)
        case 3: 1 << bit
        case 4: (1 << bit) &- 1
        case 5: old ^ 1 << bit
        case 6: old &+ 1
        case 7: old &- 1
        case 8: old &+ UInt64.random(in: 0..<300, using: &random)
        case 9: old &* 2
        case 10, 11, 12: map.numbers.randomElement(using: &random)! &+ [0, 0, 0, 1, .max].randomElement(using: &random)!
        case 13: UInt64.random(in: 0..<260, using: &random)
        case 14: [4095, 4096, 4097, 1300, 1301, 128, 129, 1024, 31744, 1 << 51, 1 << 56, 1 << 62, 1 << 63, 1 << 48].randomElement(using: &random)!
        default: random.next()
        }
        return drawn & mask
    }

    // MARK: fields

    private static func fields(_ kind: PartKind, _ bytes: RawBytes) -> [Field] {
        func all(_ at: Int, _ list: [(Int, Int)]) -> [Field] { list.map { Field(offset: at + $0.0, width: $0.1) } }
        func position(_ at: Int) -> [Field] { all(at, [(0, 8), (8, 8), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8)]) }
        func checkpoint(_ at: Int) -> [Field] {
            all(at, [(0, 8), (8, 8), (16, 8), (24, 8), (32, 4), (36, 1), (37, 1), (40, 8), (48, 8), (56, 8), (128, 8), (136, 4), (140, 4), (144, 8), (152, 8)])
                + position(at + 64)
        }
        switch kind {
        case .slot, .identity:
            return all(0, [(0, 8), (8, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 1), (120, 8), (128, 4), (132, 4), (136, 4), (140, 4)])
                + all(0, (0..<10).map { (144 + $0 * 8, 8) }) + checkpoint(224) + all(416, [(0, 8), (8, 8), (16, 4), (20, 1), (24, 8), (32, 4), (40, 8)])
                + position(464) + [Field(offset: 528, width: 8)]
        case .bitmap:
            return all(0, [(8, 8), (16, 8), (24, 8), (95, 1)]) + (0..<31).map { Field(offset: 64 + $0, width: 1) }
                + (0..<64).map { Field(offset: 128 + $0 * 8, width: 8) }
        case .deadList, .pendingList:
            let count = min(Int(bytes.u32(at: 44)), 60)
            let size = kind == .deadList ? 32 : 16
            let item = kind == .deadList ? [(0, 8), (8, 4), (12, 4), (16, 8), (24, 8)] : [(0, 8), (8, 8)]
            return all(0, [(8, 8), (16, 8), (32, 8), (40, 4), (44, 4)]) + (0..<count).flatMap { all(64 + $0 * size, item) }
        case .chunkHeader: return all(0, [(8, 8), (24, 8)]) + position(32) + position(96)
        case .frame: return frame(bytes)
        case .mainNode, .spaceNode: return node(bytes)
        case .data: return []
        }
    }

    private static func node(_ page: RawBytes) -> [Field] {
        var fields = [(0, 4), (8, 8), (16, 8), (24, 1), (25, 1), (26, 2), (26, 2), (28, 2), (28, 2), (30, 2), (32, 8), (48, 8)].map { Field(offset: $0.0, width: $0.1) }
        let level = NodeLayout.level(page)
        for index in 0..<NodeLayout.count(page) {
            let slot = NodeLayout.header + index * NodeLayout.slot
            fields += [Field(offset: slot, width: 8), Field(offset: slot, width: 1), Field(offset: slot + 8, width: 8), Field(offset: slot + 16, width: 2), Field(offset: slot + 18, width: 2)]
            let at = Int(page.u16(at: slot + 16))
            let length = Int(page.u16(at: slot + 18))
            let key = NodeLayout.key(page, index)
            for (offset, width) in level > 0 ? [(0, 8), (8, 8), (16, 4)] : item(page.u8(at: 25), key, length) where offset + width <= length {
                fields.append(Field(offset: at + offset, width: width))
            }
        }
        return fields
    }

    private static func item(_ tree: UInt8, _ key: Key, _ length: Int) -> [(Int, Int)] {
        if tree == NodeLayout.Kind.space.rawValue {
            switch SpaceItemType(rawValue: UInt8(truncatingIfNeeded: key.high)) {
            case .region: return [(0, 8), (8, 4), (12, 4), (16, 8)]
            case .chunk: return [(0, 8), (8, 8), (16, 8), (24, 8)]
            case .share: return [(0, 4), (4, 4), (8, 8)]
            default:
                return [
                    (0, 8), (8, 8), (16, 8), (24, 8), (32, 4), (36, 1), (40, 8), (48, 8), (56, 8), (64, 8), (72, 8), (80, 4), (88, 8), (96, 8), (104, 8),
                    (112, 8), (128, 8), (136, 4), (140, 4), (144, 8),
                ]
            }
        }
        switch ItemType(rawValue: key.type) {
        case .inode:
            return [
                (0, 4), (0, 4), (4, 4), (8, 4), (12, 4), (12, 4), (16, 8), (16, 8), (24, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8), (64, 4), (68, 4), (72, 8),
                (72, 8), (80, 8), (88, 4), (88, 4), (92, 1),
            ]
        case .entry: return [(0, 8), (0, 8), (8, 1), (9, 1), (10, 2), (16, 1), (17, 1)]
        case .xattr: return [(0, 8), (8, 4), (12, 1), (13, 1), (16, 8), (24, 1), (30, 1)]
        case .extent:
            return [(0, 8), (0, 8), (0, 8), (8, 8), (8, 8), (16, 4), (16, 4), (20, 4), (24, 4), (28, 1), (29, 1), (30, 2), (40, 4)]
        case .piece: return [(0, 8), (Swift.max(length - 8, 0), 8)]
        default: return [(0, 8)]
        }
    }

    private static func frame(_ bytes: RawBytes) -> [Field] {
        var fields = [(0, 4), (8, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8), (64, 8), (72, 8), (80, 4), (80, 4), (84, 4), (84, 4), (88, 8), (96, 4), (100, 4)].map {
            Field(offset: $0.0, width: $0.1)
        }
        var at = FrameHeader.size
        for _ in 0..<min(Int(bytes.u32(at: 84)), 200) {
            guard at + RecordHeader.size <= bytes.count, let record = try? Record(bytes.from(at)) else { break }
            fields += [(0, 4), (4, 2), (6, 2), (8, 8), (16, 8), (24, 4), (32, 4), (36, 4)].map { Field(offset: at + $0.0, width: $0.1) }
            for (offset, width) in payload(record) where offset + width <= record.payload.count {
                fields.append(Field(offset: at + RecordHeader.size + offset, width: width))
            }
            at += record.bytes.count
        }
        return fields
    }

    private static func payload(_ record: Record) -> [(Int, Int)] {
        func content(_ at: Int) -> [(Int, Int)] {
            let fixed: [(Int, Int)] = [(0, 8), (8, 8), (16, 8), (24, 8), (32, 4), (36, 4), (40, 4), (44, 4)]
            let each: [(Int, Int)] = [(0, 1), (1, 1), (2, 2), (4, 4), (8, 8), (16, 8), (16, 8), (24, 8), (32, 8)]
            var fields: [(Int, Int)] = fixed.map { (at + $0.0, $0.1) }
            guard let content = ContentPayload(record.payload.from(at)) else { return fields }
            var segment = ContentPayload.firstSegment
            for _ in 0..<min(content.segments, 40) {
                guard let found = Segment(content.bytes, at: segment) else { break }
                for field in each { fields.append((at + segment + field.0, field.1)) }
                segment = found.next
            }
            return fields
        }
        switch record.type {
        case .create, .mkdir, .mknod, .symlink, .tmpfile:
            return [(0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (36, 4), (40, 2), (42, 2), (44, 4), (56, 1)]
        case .link, .unlink, .rmdir: return [(0, 8), (8, 8), (16, 8), (24, 2), (26, 2), (32, 1)]
        case .rename: return [(0, 8), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 4), (60, 2), (62, 2), (64, 8), (72, 1)]
        case .setattr: return [(0, 8), (8, 4), (12, 4), (16, 4), (20, 4), (24, 8), (32, 8)]
        case .truncate, .write, .fallocate: return content(0)
        case .clone: return [(0, 8), (8, 8)] + content(ClonePayload.fixed)
        case .setxattr, .removexattr: return [(0, 8), (8, 8), (16, 8), (24, 2), (28, 4), (32, 1)]
        case .access: return [(0, 8), (8, 8)]
        case .reclaim:
            var fields: [(Int, Int)] = [(0, 4)]
            for index in 0..<8 { fields += [(8 + index * 24, 8), (16 + index * 24, 8), (24 + index * 24, 4)] }
            return fields
        case .horizon, .tag, .note, .rollback, .restore: return [(0, 8)]
        }
    }
}
