// Goal: the digest is the same for the same content and another for any other; read from an image or from a directory.
// Method: one list of steps, carried out by a volume and by the host's filesystem; then one step more on one of them.

import ByPath
import Device
import Digest
import Format
import Glibc
import Testing
import Volume

@Suite struct TreeDigests {
    private func digest(_ source: some DigestSource, countsRoot: Bool = false) throws -> String {
        let digest = TreeDigest()
        digest.countsRoot = countsRoot
        return SHA256.hexadecimal(try digest.digest(source))
    }
    private func digest(_ image: TestImage, countsRoot: Bool = false) throws -> String {
        let view = try Image(try FileDevice(path: image.path, access: .readOnly)).view(at: nil).view
        return try digest(ViewSource(view), countsRoot: countsRoot)
    }

    @Test func knownValues() {
        let hash = SHA256()
        #expect(SHA256.hexadecimal(hash.finish()) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        hash.update(Array("abc".utf8))
        #expect(SHA256.hexadecimal(hash.finish()) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    }

    @Test func imageAndDirectoryAgree() throws {
        let directory = temporaryPath("tree")
        umask(0)
        mkdir(directory, 0o755)
        defer { _ = system("rm -rf \(directory)") }
        let image = try TestImage()
        let big = [UInt8]((0..<300_000).map { UInt8(truncatingIfNeeded: ($0 * 7) >> 3) })

        func host(_ path: String, _ body: (String) -> Int32) { precondition(body(directory + "/" + path) == 0, "\(path): \(errno)") }
        func hostWrite(_ path: String, _ bytes: [UInt8], at offset: Int) {
            let descriptor = open(directory + "/" + path, O_WRONLY | O_CREAT, 0o644)
            precondition(pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count)
            close(descriptor)
        }
        try image.change { volume in
            try volume.make("sub", mode: 0o040750)
            host("sub") { mkdir($0, 0o750) }
            try volume.make("empty")
            hostWrite("empty", [], at: 0)
            try volume.make("sub/big")
            try volume.write("sub/big", big)
            hostWrite("sub/big", big, at: 0)
            // A hole in one of them is stored zeros in the other.
            try volume.make("sparse")
            try volume.write("sparse", [1], at: 1_000_000)
            hostWrite("sparse", [UInt8](repeating: 0, count: 1_000_000) + [1], at: 0)
            try volume.make("zeros")
            try volume.write("zeros", [UInt8](repeating: 0, count: 10_000))
            hostWrite("zeros", [], at: 0)
            host("zeros") { Glibc.truncate($0, 10_000) }
            try volume.make("link", mode: 0o120777, target: "sub/big")
            host("link") { symlink("sub/big", $0) }
            try volume.make("pipe", mode: 0o010600)
            host("pipe") { mkfifo($0, 0o600) }
            // Met first by the name that was made last.
            try volume.link("sub/big", "a name")
            host("a name") { link(directory + "/sub/big", $0) }
            try volume.make(.root, [0xff, 0x0a, 0x61])
        }
        // The one name that no String holds.
        let name = Array(directory.utf8) + [0x2f, 0xff, 0x0a, 0x61, 0]
        close(open(name.map { CChar(bitPattern: $0) }, O_WRONLY | O_CREAT, 0o644))

        let expected = try digest(DirectorySource(directory))
        #expect(try digest(image) == expected)

        let changes: [(PathVolume) throws -> Void] = [
            { try $0.make("new") }, { try $0.rename("new", "new2") }, { try $0.unlink("sparse") },
            { try $0.write("sub/big", [0xee], at: 123_456) }, { try $0.truncate("zeros", 10_001) },
            { try $0.setXattr("empty", "user.x", [1]) }, { try $0.setXattr("empty", "user.x", []) },
            { volume in
                var change = AttributeChange()
                change.mode = 0o600
                _ = try volume.volume.setAttributes(try volume.find("empty"), change, volume.caller)
            },
            { volume in
                var change = AttributeChange()
                change.gid = 4711
                _ = try volume.volume.setAttributes(try volume.find("empty"), change, volume.caller)
            },
            { volume in
                try volume.unlink("a name")
                try volume.make("a name")
                try volume.write("a name", big)
            },
            { volume in
                try volume.unlink("link")
                try volume.make("link", mode: 0o120777, target: "sub/bif")
            },
            { volume in
                try volume.unlink("pipe")
                try volume.make("pipe", mode: 0o140600)
            },
        ]
        var seen: Set<String> = [expected]
        for (index, change) in changes.enumerated() {
            try image.change(change)
            let changed = try digest(image)
            #expect(seen.insert(changed).inserted, "change \(index) is not seen")
        }
    }

    @Test func neitherTimesNorPlacesNorOrderCount() throws {
        let (one, two) = (try TestImage(), try TestImage(megabytes: 80, label: "other"))
        two.clock += 1_000_000_000_000
        try one.change { volume in
            for name in ["x", "y", "z"] { try volume.make(name) }
            try volume.write("y", [1, 2, 3])
        }
        try two.change { volume in
            try volume.make("junk")
            try volume.write("junk", [UInt8](repeating: 9, count: 100_000))
            for name in ["z", "y", "x"] { try volume.make(name) }
            try volume.write("y", [3])
            try volume.write("y", [1, 2, 3])
            try volume.unlink("junk")
        }
        #expect(try digest(one, countsRoot: true) == digest(two, countsRoot: true))
    }

    @Test func theRootCountsUnlessAskedNotTo() throws {
        let image = try TestImage()
        let before = (try digest(image), try digest(image, countsRoot: true))
        try image.change { volume in
            var change = AttributeChange()
            change.mode = 0o700
            _ = try volume.volume.setAttributes(.root, change, volume.caller)
        }
        #expect(try digest(image) == before.0)
        #expect(try digest(image, countsRoot: true) != before.1)
    }

    /// The stream as Docs/FORMAT.md defines it, by hand.
    @Test func theStreamIsTheDocumentedOne() throws {
        let image = try TestImage()
        try image.change { volume in
            try volume.make("f")
            try volume.write("f", Array("hello\n".utf8))
        }
        func little(_ value: some FixedWidthInteger) -> [UInt8] { withUnsafeBytes(of: value.littleEndian) { Array($0) } }
        let content = SHA256()
        content.update(little(UInt64(0)) + Array("hello\n".utf8))
        var stream = Array("daybook digest 1".utf8)
        stream += Array("F".utf8) + little(UInt16(0)) + little(UInt32(0o040000)) + [UInt8](repeating: 0, count: 20)
        stream += Array("F".utf8) + little(UInt16(1)) + Array("f".utf8) + little(UInt32(0o100644)) + little(geteuid()) + little(getegid())
        stream += [UInt8](repeating: 0, count: 12) + little(UInt64(6)) + content.finish() + Array("E".utf8)
        let hash = SHA256()
        hash.update(stream)
        #expect(try digest(image) == SHA256.hexadecimal(hash.finish()))
    }
}
