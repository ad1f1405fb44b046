// Goal: what a change does to modes and times besides what was asked: suid and sgid go, times move, names are checked.
// Method: each rule on a fresh file; the clock moves with every reading, so that "unchanged" means what it says.

import Format
import Memory
import TestSupport
import Testing

@testable import Volume

private let owner = Caller(uid: 1000, gid: 1000, pid: 1)
private let stranger = Caller(uid: 1001, gid: 1001, pid: 2)
private let group: UInt32 = 1000

@Suite struct AttributeTests {
    private func makeFile(_ volume: Volume, _ path: String, mode: UInt32) throws -> InodeNumber {
        let inode = try volume.make(path, mode: mode & 0o170000 | 0o600)
        var change = AttributeChange()
        (change.uid, change.gid) = (1000, group)
        _ = try volume.setAttributes(inode, change, .housekeeping)
        change = AttributeChange()
        change.mode = mode
        _ = try volume.setAttributes(inode, change, .housekeeping)
        return inode
    }

    /// What is left of a mode when owner or group change, or the kernel wants privileges gone.
    @Test(arguments: [
        (0o106777, 0o100777, 0o100777), (0o106767, 0o102767, 0o100767), (0o102767, 0o102767, 0o100767), (0o104644, 0o100644, 0o100644),
        (0o016777, 0o010777, 0o010777), (0o146755, 0o140755, 0o140755), (0o046777, 0o046777, 0o046777),
    ] as [(UInt32, UInt32, UInt32)])
    func privilegesGo(mode: UInt32, afterMember: UInt32, afterStranger: UInt32) throws {
        let volume = try openVolume(try makeDisk())
        for (caller, left) in [(owner, afterMember), (stranger, afterStranger), (.housekeeping, afterMember)] {
            var changes = [AttributeChange(), AttributeChange()]
            changes[0].gid = group
            changes[1].killPrivileges = true
            for change in changes {
                let inode = try makeFile(volume, "f", mode: mode)
                #expect(try volume.setAttributes(inode, change, caller).item.mode == left)
                if mode & 0o170000 == 0o040000 { try volume.removeDirectory("f") } else { try volume.unlink("f") }
            }
        }
        try volume.close()
    }

    @Test func privilegesGoWithWritesAndTruncationsOnlyIfTheKernelAsks() throws {
        let volume = try openVolume(try makeDisk())
        for kill in [false, true] {
            let left: UInt32 = kill ? 0o100777 : 0o106777
            var inode = try makeFile(volume, "f", mode: 0o106777)
            try pattern(10, 1).withRawBytes { (data) throws(OperationError) in
                try volume.write(inode, at: 0, data, killPrivileges: kill, owner)
            }
            #expect(try volume.attributes(inode).item.mode == left)
            try volume.unlink("f")
            inode = try makeFile(volume, "f", mode: 0o106777)
            var change = AttributeChange()
            change.size = 5
            change.killPrivileges = kill
            #expect(try volume.setAttributes(inode, change, owner).item.mode == left)
            try volume.unlink("f")
        }
        // Here the kernel sends a change of nothing first, if they are to go.
        let inode = try makeFile(volume, "f", mode: 0o106777)
        try volume.fallocate(inode, mode: 0, offset: 0, length: 10_000, owner)
        let source = try volume.make("source")
        try volume.write("source", pattern(10_000, 2))
        #expect(try volume.copyRange(from: source, at: 0, to: inode, at: 0, length: 10_000, owner) == 10_000)
        #expect(try volume.copyRange(from: source, at: 1, to: inode, at: 0, length: 100, owner) == 100)
        #expect(try volume.attributes(inode).item.mode == 0o106777)
        try volume.close()
    }

    /// fallocate that finds everything as it is to be still counts as a change.
    @Test(arguments: [0, 1, 3, 0x10, 0x11] as [Int32]) func fallocateMovesTheTimes(mode: Int32) throws {
        let volume = try openVolume(try makeDisk())
        let inode = try volume.make("f")
        try volume.write("f", pattern(8192, 1))
        for _ in 0..<2 {
            let before = try volume.attributes(inode).item
            try volume.fallocate(inode, mode: mode, offset: 0, length: 8192, owner)
            let after = try volume.attributes(inode).item
            #expect(after.modified > before.modified && after.changed > before.changed && after.length == 8192)
        }
        try volume.close()
    }

    @Test func aChangeOfNothingMovesTheChangeTimeOnlyIfPrivilegesAreAskedFor() throws {
        let volume = try openVolume(try makeDisk())
        let inode = try volume.make("f")
        let before = try volume.attributes(inode).item
        var change = AttributeChange()
        #expect(try volume.setAttributes(inode, change, owner).item == before)
        change.killPrivileges = true
        let after = try volume.setAttributes(inode, change, owner).item
        #expect(after.changed > before.changed && after.modified == before.modified && after.mode == before.mode)
        try volume.close()
    }

    /// relatime: the first look after a change moves the time, the next ones do not.
    @Test func lookingAtDirectoriesAndLinksMovesTheirAccessTimes() throws {
        let volume = try openVolume(try makeDisk(), accessTimes: .relative)
        try volume.makeDirectory("d")
        try volume.make("d/link", mode: 0o120777, target: "target")
        let directory = try volume.find("d")
        let link = try volume.find("d/link")
        func accessed(_ inode: InodeNumber) throws -> Timestamp { try volume.attributes(inode).item.accessed }
        _ = try volume.names("d")
        #expect(try accessed(directory.inode) == directory.item.accessed, "the middle of a listing is no look at it")
        func look() throws {
            try volume.list(directory.inode, from: 0, attributes: false) { _ in true }
            _ = try volume.readLink(link.inode) { $0.array }
        }
        try look()
        let first = (try accessed(directory.inode), try accessed(link.inode))
        #expect(first.0 > directory.item.accessed && first.1 > link.item.accessed)
        try look()
        #expect(try accessed(directory.inode) == first.0 && accessed(link.inode) == first.1)
        try volume.make("d/file")
        try look()
        #expect(try accessed(directory.inode) > first.0)
        try volume.close()
    }

    @Test func extendedAttributesHaveANamespace() throws {
        let volume = try openVolume(try makeDisk())
        let inode = try volume.make("f")
        func set(_ name: String) -> OperationError? {
            do throws(OperationError) {
                try Array(name.utf8).withRawBytes { (name) throws(OperationError) in
                    try pattern(3, 1).withRawBytes { (value) throws(OperationError) in
                        try volume.setXattr(inode, name, value, create: false, replace: false, owner)
                    }
                }
                return nil
            } catch { return error }
        }
        for name in ["user.a", "trusted.a", "security.a", "user." + String(repeating: "n", count: 250)] { #expect(set(name) == nil) }
        for name in ["a", "user", "users.a", "User.a", ".user.a"] { #expect(set(name) == .notSupported, "\(name)") }
        for name in ["user.", "trusted.", "security."] { #expect(set(name) == .invalid, "\(name)") }
        #expect(set("user." + String(repeating: "n", count: 251)) == .rangeTooSmall)
        func names(_ caller: Caller) throws -> [String] {
            try volume.listXattrs(inode, caller).split(separator: 0).map { String(decoding: $0.prefix(10), as: UTF8.self) }.sorted()
        }
        #expect(try names(.housekeeping) == ["security.a", "trusted.a", "user.a", "user.nnnnn"])
        #expect(try names(owner) == ["security.a", "user.a", "user.nnnnn"])
        try volume.close()
    }
}
