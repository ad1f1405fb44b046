// Goal: log, show, stat and digest tell what happened, also of a crashed or damaged image, and change nothing.
// Method: a volume in this process makes the history; the built command, in another, is asked about it.

import Device
import Format
import Glibc
import Testing
import Volume

@testable import daybook

@Suite struct Inspection {
    /// Twelve records in three intervals.
    private func history(crash: Bool = false) throws -> TestImage {
        let image = try TestImage()
        try image.change { volume in
            try volume.make("d", mode: 0o040755)  // 1
            try volume.make("d/f")  // 2
            try volume.write("d/f", Array("hello".utf8))  // 3
            try volume.link("d/f", "d/g")  // 4
        }
        try image.change { volume in
            try volume.rename("d", "e")  // 5
            try volume.make("other")  // 6
            try volume.write("e/g", [UInt8](repeating: 7, count: 8192))  // 7
        }
        try image.change(crash: crash) { volume in
            try volume.setXattr("other", "user.note", [1, 2])  // 8
            try volume.make("s", mode: 0o120777, target: "e/f")  // 9
            try volume.unlink("e/f")  // 10
            try volume.truncate("e/g", 3)  // 11
            try volume.make(.root, [0x62, 0xff])  // 12
            try volume.volume.commit()
        }
        return image
    }

    private func sequences(_ finished: Finished) -> [Int] {
        finished.lines.map { line in Int(line.drop { $0 == " " }.prefix { $0 != " " })! }
    }

    @Test(arguments: [false, true]) func everyRecordInOrder(crash: Bool) throws {
        let image = try history(crash: crash)
        let log = daybook("log", image.path)
        #expect(log.status == 0)
        #expect(sequences(log).prefix(12) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
        #expect(log.lines[3].hasSuffix("link         /d/f -> /d/g"))
        #expect(log.lines[4].hasSuffix("rename       /d -> /e"))
        #expect(log.lines[8].hasSuffix("symlink      /s -> e/f  mode 0777"))
        #expect(log.lines[11].contains("/b\\xff"))
        #expect(sequences(daybook("log", "--reverse", image.path)) == sequences(log).reversed())
    }

    @Test func ranges() throws {
        let image = try history()
        #expect(sequences(daybook("log", "--since", "4", "--until", "6", image.path)) == [4, 5, 6])
        #expect(sequences(daybook("log", "--since", "4", "--limit", "2", image.path)) == [4, 5])
        #expect(sequences(daybook("log", "--until", "9", "--reverse", "--limit", "3", image.path)) == [9, 8, 7])
        #expect(sequences(daybook("log", "--until", "0", image.path)) == [])
        let times = daybook("log", "--json", image.path).lines.map { line in
            String(line.split(separator: "\"time\":\"")[1].prefix { $0 != "\"" })
        }
        #expect(sequences(daybook("log", "--since", times[4], "--until", times[6], image.path)) == [5, 6, 7])
        #expect(sequences(daybook("log", "--since", times[4], "--until", times[6], "--reverse", image.path)) == [7, 6, 5])
        #expect(daybook("log", "--since", "2100-01-01", image.path).output == "")
        #expect(daybook("log", "--until", "1970-01-02", image.path).output == "")
    }

    @Test func paths() throws {
        let image = try history()
        // The file is followed through the rename of its directory and through its other name.
        #expect(sequences(daybook("log", image.path, "e/g")) == [2, 3, 4, 7, 10, 11])
        #expect(sequences(daybook("log", image.path, "/e")) == [1, 2, 3, 4, 5, 7, 10, 11])
        // A name that is gone, as it was at its time.
        #expect(sequences(daybook("log", image.path, "/d/f")) == [2, 3, 4])
        #expect(sequences(daybook("log", image.path, "/d/f", "--until", "4")) == [2, 3, 4])
        #expect(daybook("log", image.path, "/nothing").output == "")
    }

    @Test func recordsInJSON() throws {
        let image = try history()
        let lines = daybook("log", "--json", image.path).lines
        let ids = "\"uid\":\(geteuid()),\"gid\":\(getegid()),\"pid\":42"
        #expect(lines[2].contains(#""operation":"write","path":"/d/f","inode":3,"#))
        #expect(lines[2].contains(ids + #","offset":0,"length":5,"size":5}"#))
        #expect(lines[4].contains(#""operation":"rename","path":"/d","target":"/e","inode":2,"#))
        #expect(lines[8].contains(#""operation":"symlink","path":"/s","target":"e/f""#))
        #expect(lines[11].contains(#""path":"/b\ufffd","path_bytes":"L2L/","#))
        #expect(lines[0].contains(#""time":"2023-11-14T22:"#))
    }

    @Test func oneRecordInFull() throws {
        let image = try history()
        let page = daybook("show", image.path, "7")
        #expect(page.status == 0)
        #expect(page.output.contains("run        file blocks 0 to 1 at blocks"))
        #expect(page.output.components(of: "  verified") == 3)
        #expect(daybook("show", "7", image.path).output == page.output)
        #expect(daybook("show", "--data", image.path, "3").output.contains("68 65 6c 6c 6f"))
        #expect(daybook("show", image.path, "1000").errors.contains("no record 1000 yet"))
        #expect(daybook("show", image.path).status == 2)
    }

    @Test func rottenDataIsSeen() throws {
        let image = try history()
        let home = try #require(
            daybook("show", image.path, "7").lines.first { $0.contains("verified") }?.split(separator: " ")[1])
        image.overwrite(UInt64(home)!)
        let page = daybook("show", image.path, "7")
        #expect(page.status == 1)
        #expect(page.output.components(of: "DIFFERS") == 1)
        let digest = daybook("digest", "--at", "7", image.path)
        #expect(digest.status == 1)
        #expect(digest.errors.contains("block \(home)"))
    }

    @Test func aDamagedFrameHidesOnlyItsInterval() throws {
        let image = try history()
        let address = try #require(
            daybook("show", image.path, "6").lines.first { $0.hasPrefix("  address") }?.split(separator: " ")[2].dropLast())
        image.overwrite(UInt64(address)!, at: 200)
        let log = daybook("log", image.path)
        #expect(log.status == 1)
        #expect(sequences(log).prefix(9) == [1, 2, 3, 4, 8, 9, 10, 11, 12])
        #expect(log.errors.contains("records 5 to 7 cannot be read"))
        #expect(sequences(daybook("log", "--reverse", image.path)) == sequences(log).reversed())
    }

    @Test func digestsOfThePast() throws {
        let image = try history()
        let whole = daybook("digest", image.path)
        #expect(whole.status == 0 && whole.output.count == 65)
        #expect(daybook("digest", "--at", "12", image.path).output == whole.output)
        #expect(Set((0...12).map { daybook("digest", "--at", "\($0)", image.path).output }).count == 13)
        #expect(daybook("digest", "--at", "5000", image.path).errors.contains("sequence 5000 is not there yet"))
    }

    @Test func lookingChangesNothing() throws {
        let image = try history(crash: true)
        let before = ProcessFiles.contents(image.path)
        for arguments in [["log"], ["stat"], ["digest"], ["log", "--reverse", "--json"]] {
            #expect(daybook(arguments[0], image.path).status == 0)
        }
        #expect(daybook("show", image.path, "12").status == 0)
        #expect(ProcessFiles.contents(image.path) == before)
    }

    @Test func facts() throws {
        let image = try history(crash: true)
        let stat = daybook("stat", image.path)
        #expect(stat.status == 0)
        #expect(stat.output.contains("unclean: the journal will be replayed"))
        #expect(stat.output.contains("5 records in "))
        let json = daybook("stat", "--json", image.path).output
        #expect(json.contains(#""last_sequence":12,"#) && json.contains(#""records_to_replay":5,"#))
    }
}

extension String {
    fileprivate func components(of part: String) -> Int { split(separator: part, omittingEmptySubsequences: false).count - 1 }
}

@Suite struct Refusals {
    /// One line, the right status, and nothing left behind.
    private func refuses(_ finished: Finished, _ status: Int32, _ command: String, _ part: String, _ place: SourceLocation = #_sourceLocation) {
        #expect(finished.status == status, "\(finished.errors)", sourceLocation: place)
        #expect(finished.output == "", sourceLocation: place)
        #expect(finished.errors.hasPrefix("daybook \(command): "), "\(finished.errors)", sourceLocation: place)
        #expect(finished.errors.contains(part), "\(finished.errors)", sourceLocation: place)
        #expect(finished.errors.filter { $0 == "\n" }.count == 1, "\(finished.errors)", sourceLocation: place)
    }

    @Test func wrongCalls() {
        refuses(daybook("mkfs"), 1, "mkfs", "Missing")
        refuses(daybook("mkfs", "--bogus", "/nowhere/x"), 1, "mkfs", "bogus")
        refuses(daybook("mount"), 1, "mount", "Missing")
        refuses(daybook("fsck"), 16, "fsck", "which image")
        refuses(daybook("fsck", "-n", "-y", "/nowhere"), 16, "fsck", "exclude")
        refuses(daybook("-Z", "/nowhere", as: "fsck.daybook"), 16, "fsck", "-Z")
        refuses(daybook("log"), 2, "log", "Missing")
        refuses(daybook("log", "--since", "yesterday", "/dev/null"), 2, "log", "--since yesterday")
        refuses(daybook("log", "--limit", "0", "/dev/null"), 2, "log", "--limit")
        refuses(daybook("digest", "--at", "18446744073709551616", "/dev/null"), 2, "digest", "--at")
    }

    @Test func helpAndVersion() {
        #expect(daybook("--version").output == "0.1.0\n")
        for command in ["mkfs", "mount", "fsck", "log", "show", "stat", "digest"] {
            let help = daybook(command, "--help")
            #expect(help.status == 0 && help.output.contains("USAGE: daybook \(command)"))
        }
        #expect(daybook("-V", as: "/sbin/fsck.daybook").output == "daybook fsck 0.1.0\n")
    }

    @Test func whatIsNoImage() throws {
        let path = temporaryPath("foreign")
        defer { unlink(path) }
        func write(_ bytes: [UInt8]) {
            let descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC, 0o600)
            _ = Glibc.write(descriptor, bytes, bytes.count)
            close(descriptor)
        }
        for command in ["log", "stat", "digest"] {
            refuses(daybook(command, path), 1, command, "No such file")
            write([])
            refuses(daybook(command, path), 1, command, "too small")
            write([UInt8](repeating: 0, count: 1 << 20))
            refuses(daybook(command, path), 1, command, "not a Daybook filesystem")
            write((0..<1 << 17).map { _ in UInt8.random(in: 0...255) })
            refuses(daybook(command, path), 1, command, "not a Daybook filesystem")
            unlink(path)
            refuses(daybook(command, "/dev/null"), 1, command, "neither")
        }
        refuses(daybook("stat", "/"), 1, "stat", "not a mounted Daybook")
    }

    @Test func aTruncatedImage() throws {
        let image = try TestImage()
        truncate(image.path, 64 << 20)
        refuses(daybook("log", image.path), 1, "log", "truncated")
        truncate(image.path, 3 << 12)
        refuses(daybook("stat", image.path), 1, "stat", "too small")
    }

    @Test func formatting() throws {
        let path = temporaryPath("new")
        defer { unlink(path) }
        refuses(daybook("mkfs", "--size", "1M", path), 1, "mkfs", "too small")
        refuses(daybook("mkfs", "--size", "much", path), 1, "mkfs", "not a size")
        refuses(daybook("mkfs", "-L", String(repeating: "x", count: 65), path), 1, "mkfs", "65 bytes")
        refuses(daybook("mkfs", "--size", "7P", path), 1, "mkfs", path)
        #expect(access(path, F_OK) != 0)

        let made = daybook("--size", "64M", "-L", "n\u{e4}me", path, as: "mkfs.daybook")
        #expect(made.status == 0 && made.output.contains("n\u{e4}me") && made.output.contains("UUID"))
        #expect(daybook("stat", path).output.contains("n\u{e4}me"))
        refuses(daybook("mkfs", path), 1, "mkfs", "contains a Daybook filesystem (n\u{e4}me)")
        #expect(daybook("mkfs", "-f", path).status == 0)

        // Held by this process.
        let device = try FileDevice(path: path, access: .readWrite)
        let lock = try ImageLock.acquireWriter(descriptor: device.descriptor, path: path)
        refuses(daybook("mkfs", "-f", path), 1, "mkfs", "in use by")
        lock.release()
        let pin = try ImageLock.pin(descriptor: device.descriptor, sequence: SequenceNumber(0))
        refuses(daybook("mkfs", "-f", path), 1, "mkfs", "is reading it")
        pin.release()

        // A file of text is not overwritten by mistake.
        let descriptor = open(path, O_RDWR | O_TRUNC)
        _ = Glibc.write(descriptor, "my thesis", 9)
        close(descriptor)
        refuses(daybook("mkfs", "--size", "64M", path), 1, "mkfs", "unknown kind")
        #expect(ProcessFiles.contents(path) == Array("my thesis".utf8))
    }
}
