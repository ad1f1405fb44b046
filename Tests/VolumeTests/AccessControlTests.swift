// Goal: a file's mode and access control list never disagree; what is made inherits; and no crash comes between.
// Method: operations on a simulated disk; then the same with the pending frame filled to every length at which an operation's
// records could part, and the disk as each flush left it recovered.

import Device
import Format
import Journal
import Memory
import TestSupport
import Testing

@testable import Volume

private let access = "system.posix_acl_access"
private let defaults = "system.posix_acl_default"
private let shared = list(0o750, users: [(1001, 6)], mask: 7)

extension Volume {
    fileprivate func set(_ path: String, _ name: String, _ value: [UInt8], killSetGroup: Bool = false) throws {
        let inode = try find(path).inode
        try Array(name.utf8).withRawBytes { (name) throws(OperationError) in
            try value.withRawBytes { (value) throws(OperationError) in
                try setXattr(inode, name, value, create: false, replace: false, killSetGroup: killSetGroup, testCaller)
            }
        }
    }
    fileprivate func remove(_ path: String, _ name: String) throws {
        let inode = try find(path).inode
        try Array(name.utf8).withRawBytes { (name) throws(OperationError) in try removeXattr(inode, name, testCaller) }
    }
    fileprivate func get(_ path: String, _ name: String) throws -> [UInt8] {
        let inode = try find(path).inode
        return try Array(name.utf8).withRawBytes { (name) throws(OperationError) in try xattr(inode, name) { $0.array } }
    }
    /// Nil if there is none.
    fileprivate func list(_ path: String, _ name: String) throws -> AccessControlList? {
        do { return try get(path, name).withRawBytes { AccessControlList($0) } } catch OperationError.noAttribute { return nil }
    }
    fileprivate func names(of path: String) throws -> [String] {
        try listXattrs(try find(path).inode, .housekeeping).split(separator: 0).map { String(decoding: $0, as: UTF8.self) }.sorted()
    }
    fileprivate func mode(_ path: String) throws -> UInt32 { try find(path).item.mode }
    fileprivate func changeMode(_ path: String, _ mode: UInt32, size: UInt64? = nil) throws {
        var change = AttributeChange()
        change.mode = mode
        change.size = size
        _ = try setAttributes(try find(path).inode, change, testCaller)
    }
    fileprivate func make(_ path: String, mode: UInt32, umask: UInt32) throws {
        let parts = path.split(separator: "/")
        let parent = try find(parts.dropLast().joined(separator: "/")).inode
        let caller = Caller(uid: 1000, gid: 100, pid: 1, umask: umask)
        let made = try Array(parts.last!.utf8).withRawBytes { (name) throws(OperationError) in
            try Array("target".utf8).withRawBytes { (target) throws(OperationError) in
                try self.make(parent, name, mode: mode, device: 0, target: mode >> 12 == 10 ? target : target.slice(0, 0), caller)
            }
        }
        forget(made.inode, count: 1)
    }
}

@Suite struct AccessControl {
    // MARK: setting

    @Test func settingAListSetsTheMode() throws {
        let volume = try openVolume(try makeDisk())
        try volume.make("f", mode: 0o106644)
        try volume.set("f", access, shared.bytes)
        #expect(try volume.mode("f") == 0o106770)
        #expect(try volume.list("f", access) == shared)
        #expect(try volume.names(of: "f") == [access])
        // Privileges of the group go only if the kernel says so.
        try volume.set("f", access, shared.bytes, killSetGroup: true)
        #expect(try volume.mode("f") == 0o104770)
        try volume.close()
    }

    @Test func whatAModeCanSayIsNotStored() throws {
        let volume = try openVolume(try makeDisk())
        try volume.make("f")
        let before = volume.sequence
        try volume.set("f", access, list(0o644).bytes)
        #expect(volume.sequence == before, "nothing to do")
        try volume.set("f", access, list(0o751).bytes)
        #expect(try volume.mode("f") == 0o100751)
        #expect(try volume.find("f").item.xattrs == 0)
        try volume.set("f", access, shared.bytes)
        try volume.set("f", access, list(0o640).bytes)
        #expect(try volume.mode("f") == 0o100640)
        #expect(try volume.find("f").item.xattrs == 0)
        // On directories a default list is kept whatever it says.
        try volume.makeDirectory("d")
        try volume.set("d", defaults, list(0o755).bytes)
        #expect(try volume.list("d", defaults) == list(0o755))
        #expect(try volume.mode("d") == 0o040755)
        try volume.close()
    }

    @Test func removing() throws {
        let volume = try openVolume(try makeDisk())
        try volume.make("f")
        try volume.set("f", access, shared.bytes)
        for none: [UInt8]? in [nil, [], [2, 0, 0, 0]] {
            try volume.set("f", access, shared.bytes)
            if let none { try volume.set("f", access, none) } else { try volume.remove("f", access) }
            #expect(try volume.list("f", access) == nil)
            #expect(try volume.mode("f") == 0o100770, "the bits stay as they are")
        }
        let before = volume.sequence
        try volume.remove("f", access)
        try volume.remove("f", defaults)
        try volume.set("f", defaults, [])
        #expect(volume.sequence == before)
        #expect(throws: OperationError.noAttribute) { try volume.get("f", access) }
        try volume.close()
    }

    @Test func refusals() throws {
        let volume = try openVolume(try makeDisk())
        try volume.make("f")
        try volume.makeDirectory("d")
        try volume.make("l", mode: 0o120777, target: "f")
        let before = volume.sequence
        #expect(throws: OperationError.accessDenied) { try volume.set("f", defaults, shared.bytes) }
        for name in [access, defaults] {
            #expect(throws: OperationError.notSupported) { try volume.set("l", name, shared.bytes) }
            #expect(throws: OperationError.invalid) { try volume.set("d", name, Array(shared.bytes.dropLast())) }
            #expect(throws: OperationError.invalid) { try volume.set("d", name, [1, 0, 0, 0]) }
            #expect(throws: OperationError.argumentTooLong) { try volume.set("d", name, [UInt8](repeating: 0, count: 4097)) }
        }
        for name in ["system.", "system.x", access + "x", "system.posix_acl"] {
            #expect(throws: OperationError.notSupported) { try volume.set("d", name, shared.bytes) }
            #expect(throws: OperationError.notSupported) { try volume.get("d", name) }
            #expect(throws: OperationError.notSupported) { try volume.remove("d", name) }
        }
        #expect(volume.sequence == before)
        try volume.close()
    }

    @Test func changingTheModeChangesTheList() throws {
        let volume = try openVolume(try makeDisk())
        try volume.make("f")
        try volume.set("f", access, shared.bytes)
        try volume.changeMode("f", 0o4601)
        #expect(try volume.mode("f") == 0o104601)
        #expect(try volume.list("f", access) == list(0o651, users: [(1001, 6)], mask: 0))
        // Owners, times and the length do not.
        var change = AttributeChange()
        change.uid = 7
        change.modified = Timestamp(nanoseconds: 5)
        change.size = 10
        _ = try volume.setAttributes(try volume.find("f").inode, change, testCaller)
        #expect(try volume.list("f", access) == list(0o651, users: [(1001, 6)], mask: 0))
        #expect(try volume.find("f").item.length == 10)
        #expect(try volume.find("f").item.modified.nanoseconds == 5)
        // A default list has nothing to do with the directory's own mode.
        try volume.makeDirectory("d")
        try volume.set("d", defaults, shared.bytes)
        try volume.changeMode("d", 0o700)
        #expect(try volume.list("d", defaults) == shared)
        try volume.close()
    }

    @Test func longLists() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        let long = list(0o750, users: (0..<500).map { ($0, 5) }, mask: 7)
        try volume.makeDirectory("d")
        try volume.set("d", defaults, long.bytes)
        try volume.makeDirectory("d/sub")
        try volume.make("d/sub/f", mode: 0o100640)
        try volume.changeMode("d/sub/f", 0o604)
        try volume.commit()
        let again = try openVolume(disk.copy())
        for volume in [volume, again] {
            #expect(try volume.list("d/sub", access) == long.inherited(by: 0o755))
            #expect(try volume.list("d/sub", defaults) == long)
            #expect(try volume.list("d/sub/f", access) == long.inherited(by: 0o640).changed(to: 0o604))
        }
        try volume.close()
        try again.close()
    }

    // MARK: making

    @Test func theUmaskCountsWhereNothingIsInherited() throws {
        let volume = try openVolume(try makeDisk())
        try volume.makeDirectory("d")
        try volume.set("d", "user.other", [1])
        for directory in ["", "d/"] {
            try volume.make(directory + "f", mode: 0o104666, umask: 0o027)
            try volume.make(directory + "s", mode: 0o041777, umask: 0o7777)
            try volume.make(directory + "p", mode: 0o010666, umask: 0o002)
            try volume.make(directory + "l", mode: 0o120777, umask: 0o777)
            #expect(try volume.mode(directory + "f") == 0o104640)
            #expect(try volume.mode(directory + "s") == 0o041000)
            #expect(try volume.mode(directory + "p") == 0o010664)
            #expect(try volume.mode(directory + "l") == 0o120777)
        }
        try volume.close()
    }

    @Test func inheriting() throws {
        let volume = try openVolume(try makeDisk())
        try volume.makeDirectory("d")
        try volume.set("d", defaults, shared.bytes)
        try volume.make("d/f", mode: 0o104666, umask: 0o777)
        #expect(try volume.mode("d/f") == 0o104660)
        #expect(try volume.list("d/f", access) == list(0o650, users: [(1001, 6)], mask: 6))
        #expect(try volume.names(of: "d/f") == [access])
        try volume.make("d/p", mode: 0o010600, umask: 0)
        #expect(try volume.list("d/p", access) == list(0o650, users: [(1001, 6)], mask: 0))
        try volume.make("d/l", mode: 0o120777, umask: 0)
        #expect(try volume.mode("d/l") == 0o120777)
        #expect(try volume.find("d/l").item.xattrs == 0)
        try volume.make("d/sub", mode: 0o040777, umask: 0o777)
        #expect(try volume.mode("d/sub") == 0o040770)
        #expect(try volume.list("d/sub", access) == shared)
        #expect(try volume.list("d/sub", defaults) == shared)
        try volume.make("d/sub/f", mode: 0o100644, umask: 0)
        #expect(try volume.list("d/sub/f", access) == list(0o650, users: [(1001, 6)], mask: 4))

        // A default list that a mode can say: files get the mode alone, directories the list as well.
        try volume.set("d", defaults, list(0o750).bytes)
        try volume.make("d/g", mode: 0o100666, umask: 0o777)
        #expect(try volume.mode("d/g") == 0o100640)
        #expect(try volume.find("d/g").item.xattrs == 0)
        try volume.make("d/sub2", mode: 0o040777, umask: 0)
        #expect(try volume.names(of: "d/sub2") == [defaults])
        try volume.close()
    }

    @Test func inheritedListsAreReplacedInTheirPlaces() throws {
        let volume = try openVolume(try makeDisk())
        try volume.makeDirectory("d")
        try volume.set("d", defaults, shared.bytes)
        try volume.makeDirectory("d/sub")
        try volume.remove("d/sub", access)
        try volume.set("d/sub", access, shared.bytes)
        #expect(try volume.names(of: "d/sub") == [access, defaults])
        #expect(try volume.find("d/sub").item.xattrs == 2)
        try volume.close()
    }

    // MARK: without

    @Test func withoutListsNothingIsShownOrInherited() throws {
        let disk = try makeDisk()
        var volume = try openVolume(disk)
        try volume.makeDirectory("d")
        try volume.set("d", access, shared.bytes)
        try volume.set("d", defaults, shared.bytes)
        try volume.set("d", "user.kept", [1])
        try volume.close()
        volume = try openVolume(disk)
        #expect(volume.hasAccessControlLists)
        volume.ignoreAccessControlLists()
        #expect(!volume.hasAccessControlLists)
        #expect(try volume.names(of: "d") == ["user.kept"])
        for name in [access, defaults] {
            #expect(throws: OperationError.notSupported) { try volume.get("d", name) }
            #expect(throws: OperationError.notSupported) { try volume.set("d", name, shared.bytes) }
            #expect(throws: OperationError.notSupported) { try volume.remove("d", name) }
        }
        try volume.make("d/f", mode: 0o100666, umask: 0o022)
        #expect(try volume.mode("d/f") == 0o100644)
        #expect(try volume.find("d/f").item.xattrs == 0)
        try volume.close()
    }

    @Test func aDamagedListIsAnErrorAndCanBeRemoved() throws {
        let volume = try openVolume(try makeDisk())
        try volume.makeDirectory("d")
        // As no operation would store it.
        for kind in [AccessControlKind.access, .default] {
            let inode = try volume.find("d").inode
            try volume.mutate { () throws(ViewError) in
                let offset = kind.name.withRawBytes { NameHash.offset($0, seed: volume.superblock.seed) }
                let change = XattrChange(offset: offset, name: kind.name, value: [9, 9, 9, 9, 9])
                try volume.perform(change, inode, testCaller, time: Timestamp(nanoseconds: 1))
            }
        }
        let before = volume.sequence
        for _ in 0..<2 {
            do {
                try volume.make("d/f")
                Issue.record("made with a list that nobody can read")
            } catch OperationError.io(let text) { #expect(text.contains("access control list default")) }
            do {
                try volume.changeMode("d", 0o700)
                Issue.record("changed with a list that nobody can read")
            } catch OperationError.io(let text) { #expect(text.contains("access control list access")) }
        }
        #expect(volume.sequence == before)
        #expect(!volume.isReadOnly)
        try volume.remove("d", defaults)
        try volume.make("d/f")
        try volume.set("d", access, shared.bytes)
        try volume.changeMode("d", 0o700)
        try volume.close()
    }
}

// MARK: crashes

/// A traced disk whose writes can be held up.
private final class HeldDisk: BlockDevice, @unchecked Sendable {
    let traced: TracedDisk
    private let lock = Lock()
    private var holds = false
    private var waiting = false

    init(_ disk: SimulatedDisk) { traced = TracedDisk(disk) }

    func hold() { lock.withLock { holds = true } }
    /// Until somebody waits to write.
    func waitUntilHeld() { lock.withLock { while !waiting { lock.wait() } } }
    func letGo() {
        lock.withLock {
            holds = false
            waiting = false
            lock.broadcast()
        }
    }

    var blockCount: UInt64 { traced.blockCount }
    var isReadOnly: Bool { false }
    var name: String { traced.name }
    func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) { try traced.read(block, into: bytes) }
    func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        lock.withLock {
            while holds {
                waiting = true
                lock.broadcast()
                lock.wait()
            }
        }
        try traced.write(block, bytes)
    }
    func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        for (index, page) in pages.enumerated() { try write(block + UInt64(index), page) }
    }
    func flush() throws(DeviceError) { try traced.flush() }
}

@Suite struct AccessControlCrashTests {
    /// An operation, and what must hold of the state before it (false) and after it (true), and so of whatever a crash leaves.
    struct Case: Sendable, CustomTestStringConvertible {
        let name: String
        let prepare: @Sendable (Volume) throws -> Void
        let operation: @Sendable (Volume) throws -> Void
        let outcome: @Sendable (Volume) throws -> Bool?
        var testDescription: String { name }
    }

    static let cases: [Case] = [
        Case(
            name: "a directory inherits both lists",
            prepare: { volume in
                try volume.makeDirectory("d")
                try volume.set("d", defaults, shared.bytes)
            },
            operation: { try $0.makeDirectory("d/sub") },
            outcome: { volume in
                guard try volume.names("d") == ["sub"] else { return false }
                return try volume.list("d/sub", access) == list(0o750, users: [(1001, 6)], mask: 5)
                    && volume.list("d/sub", defaults) == shared ? true : nil
            }),
        Case(
            name: "a list and the mode that it says",
            prepare: { try $0.make("f") },
            operation: { try $0.set("f", access, shared.bytes) },
            outcome: { volume in
                switch (try volume.mode("f"), try volume.list("f", access)) {
                case (0o100644, nil): false
                case (0o100770, shared): true
                default: nil
                }
            }),
        Case(
            name: "a mode and the list that follows, and the length",
            prepare: { volume in
                try volume.make("f")
                try volume.write("f", pattern(9000, 1))
                try volume.set("f", access, shared.bytes)
            },
            operation: { try $0.changeMode("f", 0o611, size: 5000) },
            outcome: { volume in
                switch (try volume.find("f").item.length, try volume.mode("f"), try volume.list("f", access)) {
                case (9000, 0o100770, shared): false
                case (5000, 0o100611, list(0o651, users: [(1001, 6)], mask: 1)): true
                default: nil
                }
            }),
        Case(
            name: "a list that becomes a mode again",
            prepare: { volume in
                try volume.make("f")
                try volume.set("f", access, shared.bytes)
            },
            operation: { try $0.set("f", access, list(0o600).bytes) },
            outcome: { volume in
                switch (try volume.mode("f"), try volume.list("f", access)) {
                case (0o100770, shared): false
                case (0o100600, nil): true
                default: nil
                }
            }),
    ]

    /// A bug it would find: an operation's second record in the frame after the one that the first was in.
    @Test(arguments: cases) func noCrashPartsAnOperation(_ crash: Case) throws {
        // The longest of these operations has records of fewer than 500 bytes, each of a multiple of 8.
        for left in stride(from: 0, through: 520, by: 40) {
            let start = try makeDisk()
            let disk = HeldDisk(start.copy())
            let volume = try openVolume(disk)
            try crash.prepare(volume)
            try volume.make("fill")
            try volume.commit()
            disk.hold()
            // The writer is kept at one frame, so that nobody but the operation ends the next.
            try volume.set("fill", "user.fill", pattern(1000, 1))
            volume.lock.withLock {
                volume.commitWanted = true
                volume.lock.broadcast()
            }
            disk.waitUntilHeld()
            try fill(volume, leaving: left)
            try crash.operation(volume)
            disk.letGo()
            try volume.commit()
            #expect(try crash.outcome(volume) == true)
            volume.abandon()

            // The disk as each flush left it.
            let state = start.copy()
            var outcomes: [Bool] = []
            var commits = 0
            for event in disk.traced.events {
                switch event {
                case .write(let block, let bytes):
                    try bytes.withRawBytes { (bytes) throws(DeviceError) in try state.write(block, bytes) }
                case .flush:
                    try state.flush()
                    commits += 1
                    let recovered = try openVolume(state.copy())
                    defer { recovered.abandon() }
                    // Before `prepare` was committed there is nothing to look at.
                    guard try recovered.names("").contains("fill") else { continue }
                    let outcome = try crash.outcome(recovered)
                    #expect(outcome != nil, "\(left) bytes were left of the frame; after \(commits) flushes")
                    outcomes.append(outcome ?? false)
                }
            }
            #expect(outcomes.last == true)
            #expect(outcomes.contains(false))
        }
    }

    /// Leaves `left` bytes of the pending frame. Only while nobody else ends it.
    private func fill(_ volume: Volume, leaving left: Int) throws {
        let name = "user.fill"
        let fixed = XattrPayload.fixed + name.utf8.count
        while true {
            let room = volume.lock.withLock { FrameHeader.maximumPayload - volume.journal!.pendingBytes } - left
            if room == 0 { return }
            let least = Record.size(payload: fixed)
            // What would be left must take another record.
            var size = min(room, 32 << 10)
            if room - size > 0 && room - size < least { size -= least }
            try volume.set("fill", name, pattern(size - RecordHeader.size - fixed, 3))
        }
    }
}
