// Goal: access control lists are what acl(5) says, and follow modes as it says.
// Method: all short sequences of entries against the rules read one entry after the other; all modes; bytes that are no list.

import Device
import Memory
import Testing

@testable import Volume

private typealias List = AccessControlList
private typealias Entry = AccessControlList.Entry

private let tags: [List.Tag] = [.owner, .user, .owningGroup, .group, .mask, .others]

/// A list from owner, group and others, and whatever stands between them.
func list(_ mode: UInt16, users: [(UInt32, UInt16)] = [], groups: [(UInt32, UInt16)] = [], mask: UInt16? = nil) -> AccessControlList {
    List(
        [Entry(tag: .owner, permissions: mode >> 6 & 7)] + users.map { Entry(tag: .user, permissions: $1, id: $0) }
            + [Entry(tag: .owningGroup, permissions: mode >> 3 & 7)] + groups.map { Entry(tag: .group, permissions: $1, id: $0) }
            + (mask.map { [Entry(tag: .mask, permissions: $0)] } ?? []) + [Entry(tag: .others, permissions: mode & 7)])!
}

private func decode(_ bytes: [UInt8]) -> List? { bytes.withRawBytes { List($0) } }

/// acl(5), as an automaton that reads tags: the state is the last tag that had to come.
private func isAccepted(_ sequence: [List.Tag]) -> Bool {
    var last: List.Tag?
    var named = false
    var masked = false
    for tag in sequence {
        switch (last, tag) {
        case (nil, .owner): last = .owner
        case (.owner, .user): named = true
        case (.owner, .owningGroup): last = .owningGroup
        case (.owningGroup, .group) where !masked: named = true
        case (.owningGroup, .mask) where !masked: masked = true
        case (.owningGroup, .others) where masked || !named: last = .others
        default: return false
        }
    }
    return last == .others
}

@Suite struct AccessControlLists {
    @Test func exactlyTheSequencesOfAcl5AreValid() {
        var accepted = 0
        func extend(_ sequence: [List.Tag]) {
            let entries = sequence.enumerated().map { Entry(tag: $1, permissions: 7, id: UInt32($0)) }
            #expect((List(entries) != nil) == isAccepted(sequence), "\(sequence)")
            if isAccepted(sequence) { accepted += 1 }
            if sequence.count < 6 { for tag in tags { extend(sequence + [tag]) } }
        }
        extend([])
        // Minimal; with a mask; with one or two named and a mask.
        #expect(accepted == 1 + 1 + 2 + 3)
    }

    @Test func permissionsAndIDsAreChecked() {
        func entries(_ permissions: UInt16, _ first: UInt32, _ second: UInt32, _ tag: List.Tag = .user) -> [Entry] {
            [
                Entry(tag: .owner, permissions: 7), Entry(tag: .user, permissions: permissions, id: first),
                Entry(tag: .owningGroup, permissions: 7), Entry(tag: tag, permissions: 1, id: second),
                Entry(tag: .mask, permissions: 7), Entry(tag: .others, permissions: 0),
            ].sorted { $0.tag.rawValue < $1.tag.rawValue }
        }
        #expect(List(entries(7, 1, 2)) != nil)
        #expect(List(entries(0, 2, 1)) != nil)
        #expect(List(entries(8, 1, 2)) == nil)
        #expect(List(entries(.max, 1, 2)) == nil)
        #expect(List(entries(7, 1, 1)) == nil, "a user twice")
        #expect(List(entries(7, 1, 1, .group)) != nil, "a user and a group of one number")
        #expect(List(entries(7, List.noID, 1)) == nil)
    }

    @Test func bytesAreThoseOfLinux() {
        let some = list(0o754, users: [(65534, 6)], groups: [(0x01020304, 5)], mask: 7)
        let bytes: [UInt8] = [
            2, 0, 0, 0,  // version
            1, 0, 7, 0, 255, 255, 255, 255,  // user::rwx
            2, 0, 6, 0, 0xfe, 0xff, 0, 0,  // user:65534:rw-
            4, 0, 5, 0, 255, 255, 255, 255,  // group::r-x
            8, 0, 5, 0, 4, 3, 2, 1,  // group:16909060:r-x
            16, 0, 7, 0, 255, 255, 255, 255,  // mask::rwx
            32, 0, 4, 0, 255, 255, 255, 255,  // other::r--
        ]
        #expect(some.bytes == bytes)
        #expect(decode(bytes) == some)
        // An ID where none belongs is not kept.
        var other = bytes
        other[8] = 9
        #expect(decode(other) == some)
    }

    @Test func whatIsNoListIsRefused() {
        let bytes = list(0o750, users: [(1, 7)], mask: 7).bytes
        for count in 0..<bytes.count { #expect(decode(Array(bytes.prefix(count))) == nil) }
        #expect(decode(bytes + [0]) == nil)
        for version: UInt8 in [0, 1, 3, 255] { #expect(decode([version] + bytes.dropFirst()) == nil) }
        for tag: UInt8 in [0, 3, 64, 255] {
            var wrong = bytes
            wrong[12] = tag
            #expect(decode(wrong) == nil)
        }
        let none: [[UInt8]] = [[], [2, 0, 0, 0]]
        for bytes in none {
            #expect(decode(bytes) == nil)
            #expect(bytes.withRawBytes { List.isNone($0) })
        }
        #expect(![1, 0, 0, 0].withRawBytes { List.isNone($0) })
        #expect(!bytes.withRawBytes { List.isNone($0) })
    }

    @Test func noListIsLongerThanAPage() {
        let most = (List.maximumSize - 4) / 8 - 4
        let users = (0..<UInt32(most)).map { ($0, UInt16(7)) }
        let longest = list(0o777, users: users, mask: 7)
        #expect(longest.bytes.count <= 4096)
        #expect(decode(longest.bytes) == longest)
        #expect(List(longest.entries + [Entry(tag: .others, permissions: 0)]) == nil)
        var more = longest.entries
        more.insert(Entry(tag: .user, permissions: 7, id: 1 << 20), at: 2)
        #expect(List(more) == nil)
    }

    @Test(arguments: 1...20 as ClosedRange<UInt64>) func mutatedBytesNeverTrap(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        for _ in 0..<500 {
            var bytes = list(0o640, users: [(1, 4)], groups: [(2, 6)], mask: 5).bytes
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                bytes[Int.random(in: bytes.indices, using: &random)] = UInt8.random(in: 0...40, using: &random)
            }
            guard let decoded = decode(bytes) else { continue }
            #expect(decode(decoded.bytes) == decoded, "seed \(seed)")
        }
    }

    @Test func modesAndLists() {
        for mode: UInt16 in 0...0o777 {
            let minimal = list(mode)
            #expect(minimal.isEquivalentToMode)
            #expect(minimal.permissions == UInt32(mode))
            #expect(minimal.changed(to: 0o102345).permissions == 0o345)
            #expect(minimal.inherited(by: 0o106745).permissions == UInt32(mode) & 0o745)

            // The group's bits are the mask's, and what is behind the mask stays.
            let extended = list(mode, users: [(5, 6)], groups: [(6, 3)], mask: 5)
            #expect(!extended.isEquivalentToMode)
            #expect(extended.permissions == UInt32(mode) & 0o707 | 0o050)
            #expect(extended.changed(to: 0o4613) == list(mode & 0o070 | 0o603, users: [(5, 6)], groups: [(6, 3)], mask: 1))
            #expect(
                extended.inherited(by: 0o100666)
                    == list(mode & 0o676, users: [(5, 6)], groups: [(6, 3)], mask: 4))
            // A mask alone makes a list that no mode says.
            #expect(!list(mode, mask: 7).isEquivalentToMode)
            #expect(list(mode, mask: 2).changed(to: 0o777) == list(mode & 0o070 | 0o707, mask: 7))
        }
    }
}
