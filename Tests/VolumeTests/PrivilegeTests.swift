// Goal: suid and sgid go when contents change under them, exactly when POSIX and Linux say so.
// Method: every mode with them, every way to change contents, by root, by a member of the file's group, and by a stranger.

import Format
import Memory
import TestSupport
import Testing
import Volume

private let root = Caller(uid: 0, gid: 0, pid: 1)
private let member = Caller(uid: 1000, gid: 100, pid: 1)
private let stranger = Caller(uid: 2000, gid: 200, pid: 1)

@Suite struct PrivilegeTests {
    private enum Change: CaseIterable { case write, truncate, fallocate, nothingMissing, punch, zero, share, copy }

    private func apply(_ change: Change, _ volume: Volume, _ inode: InodeNumber, _ source: InodeNumber, _ caller: Caller) throws {
        // Of these the kernel says whether suid and sgid are to go: not when root asks.
        let kill = caller.uid != 0
        if kill && change != .write && change != .truncate {
            // Before these it asks for it, by a change of nothing.
            var nothing = AttributeChange()
            nothing.killPrivileges = true
            _ = try volume.setAttributes(inode, nothing, caller)
        }
        switch change {
        case .write:
            try pattern(10, 1).withRawBytes { (data) throws(OperationError) in
                try volume.write(inode, at: 0, data, killPrivileges: kill, caller)
            }
        case .truncate:
            var attributes = AttributeChange()
            attributes.size = 5
            attributes.killPrivileges = kill
            _ = try volume.setAttributes(inode, attributes, caller)
        case .fallocate: try volume.fallocate(inode, mode: 0, offset: 0, length: 100_000, caller)
        case .nothingMissing: try volume.fallocate(inode, mode: 0, offset: 0, length: 4096, caller)
        case .punch: try volume.fallocate(inode, mode: 3, offset: 0, length: 4096, caller)
        case .zero: try volume.fallocate(inode, mode: 0x10, offset: 0, length: 4096, caller)
        case .share: _ = try volume.copyRange(from: source, at: 0, to: inode, at: 0, length: 8192, caller)
        case .copy: _ = try volume.copyRange(from: source, at: 1, to: inode, at: 0, length: 100, caller)
        }
    }

    private func expected(_ mode: UInt32, _ caller: Caller) -> UInt32 {
        guard caller.uid != 0 else { return mode }
        let keepsGroup = mode & 0o010 == 0 && caller.gid == 100
        return mode & ~0o6000 | (keepsGroup ? mode & 0o2000 : 0)
    }

    @Test func contentsChange() throws {
        let volume = try openVolume(try makeDisk())
        try volume.make("source")
        try volume.write("source", pattern(10_000, 1))
        let source = try volume.find("source").inode
        for caller in [root, member, stranger] {
            for mode in [0o6666, 0o6676, 0o6766, 0o6777, 0o2676, 0o2666, 0o4711, 0o777] as [UInt32] {
                for change in Change.allCases {
                    let inode = try volume.make("file", mode: 0o100000 | mode)
                    try volume.write("file", pattern(10_000, 2))
                    try apply(change, volume, inode, source, caller)
                    let left = try volume.find("file").item.mode & 0o7777
                    #expect(left == expected(mode, caller), "\(change), mode \(String(mode, radix: 8)), uid \(caller.uid)")
                    try volume.unlink("file")
                }
            }
        }
        try volume.close()
    }
}
