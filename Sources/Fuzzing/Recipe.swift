// Recipe: how a mutant is made from a base image, as a line of text:
//
//   worked mend; poke 17 128 8 ffffffff; copy 4 9 here; swap 5 12; zero 3; cut 9000
//
//   poke PART OFFSET WIDTH VALUE   an integer of 1, 2, 4 or 8 bytes (value hexadecimal)
//   copy PART PART [here]          the second gets the first's bytes; `here`: made to say that it belongs where it lies
//   swap PART PART                 each lies where the other was
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
