// NameHash: where a name lies among its directory's entries.
//
// SipHash-2-4 (Aumasson and Bernstein, 2012) keyed with the filesystem's hash seed, so that nobody can prepare names
// that collide. Its upper 56 bits and a 7-bit ordinal make an entry's offset, below 2^63 as readdir(3) wants:
//
//   63      62                                     7 6        0
//   [ 0 ]  [        56 bits of the name's hash     ][ ordinal ]
//
// The ordinal tells names of equal hash apart. It is given when the entry is made and kept until it is removed.

public import Memory

public struct HashSeed: Hashable, Sendable {
    public let k0: UInt64
    public let k1: UInt64
    public init(k0: UInt64, k1: UInt64) {
        self.k0 = k0
        self.k1 = k1
    }
}

public enum NameHash {
    public static let ordinals: UInt64 = 128
    /// Offsets 0 to 2 of a listing are its start, `.` and `..`; a real entry is never given one below this.
    public static let firstOffset: UInt64 = 128

    /// The offset with ordinal 0 for `name`.
    public static func offset(_ name: RawBytes, seed: HashSeed) -> UInt64 {
        Swift.max((sipHash24(name, seed) >> 8) << 7, firstOffset)
    }

    @inline(__always) private static func rotate(_ x: UInt64, _ by: UInt64) -> UInt64 { (x << by) | (x >> (64 - by)) }

    /// SipHash-2-4.
    public static func sipHash24(_ bytes: RawBytes, _ seed: HashSeed) -> UInt64 {
        var v0 = seed.k0 ^ 0x736f_6d65_7073_6575
        var v1 = seed.k1 ^ 0x646f_7261_6e64_6f6d
        var v2 = seed.k0 ^ 0x6c79_6765_6e65_7261
        var v3 = seed.k1 ^ 0x7465_6462_7974_6573
        @inline(__always) func round() {
            v0 = v0 &+ v1
            v1 = rotate(v1, 13) ^ v0
            v0 = rotate(v0, 32)
            v2 = v2 &+ v3
            v3 = rotate(v3, 16) ^ v2
            v0 = v0 &+ v3
            v3 = rotate(v3, 21) ^ v0
            v2 = v2 &+ v1
            v1 = rotate(v1, 17) ^ v2
            v2 = rotate(v2, 32)
        }
        var offset = 0
        while offset + 8 <= bytes.count {
            let word = bytes.u64(at: offset)
            v3 ^= word
            round()
            round()
            v0 ^= word
            offset += 8
        }
        var last = UInt64(truncatingIfNeeded: bytes.count) << 56
        var shift: UInt64 = 0
        while offset < bytes.count {
            last |= UInt64(bytes.u8(at: offset)) << shift
            shift += 8
            offset += 1
        }
        v3 ^= last
        round()
        round()
        v0 ^= last
        v2 ^= 0xff
        round()
        round()
        round()
        round()
        return v0 ^ v1 ^ v2 ^ v3
    }
}
