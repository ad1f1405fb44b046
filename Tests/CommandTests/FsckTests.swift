// Goal: fsck says what it did, changes nothing with -n, repairs only what it may, and ends with the status that fsck(8) wants.
// Method: image files damaged in known places, the built command, bytes before and after.

import Check
import Device
import Format
import Glibc
import Space
import Testing
import Volume

@Suite struct FsckTests {
    private func bytes(_ image: TestImage) -> [UInt8] { ProcessFiles.contents(image.path) ?? [] }
    /// In a place of its own, or a failure would print both.
    private func holds(_ image: TestImage, _ before: [UInt8]) -> Bool { bytes(image) == before }

    /// A crashed image with something to replay.
    private func crashed() throws -> TestImage {
        let image = try TestImage(megabytes: 64)
        try image.change { _ = try $0.make("before") }
        try image.change(crash: true) { volume in
            for index in 0..<20 { _ = try volume.make("f\(index)") }
            try volume.volume.commit()
        }
        return image
    }

    @Test func cleanImageIsOnlySaidToBeClean() throws {
        let image = try TestImage(megabytes: 64)
        let before = bytes(image)
        for name in [nil, "fsck.daybook"] {
            let done = name == nil ? daybook("fsck", image.path) : daybook(image.path, as: name)
            #expect(done.status == 0 && done.errors.isEmpty)
            #expect(done.lines.count == 1 && done.output.contains(": clean, 1 inode"))
        }
        #expect(daybook("fsck", "-f", image.path).status == 0)
        #expect(holds(image, before))
    }

    @Test func replayIsSaidAndCountsAsACorrection() throws {
        let image = try crashed()
        let before = bytes(image)
        let trial = daybook("fsck", "-n", "-f", image.path)
        #expect(trial.status == 0, "\(trial.output)\(trial.errors)")
        #expect(trial.output.contains("replayed 20 records in 1 frame, sequences 2 to 21, in memory"))
        #expect(trial.output.contains("the journal ends in chunk"))
        #expect(holds(image, before), "-n changed the image")
        let real = daybook("fsck", image.path)
        #expect(real.status == 1, "\(real.output)\(real.errors)")
        #expect(daybook("fsck", "-f", "-n", image.path).status == 0)
        #expect(daybook("fsck", image.path).output.contains(": clean, 22 inodes"))
    }

    @Test func damagedSlotAndIdentityAreWrittenAnew() throws {
        let image = try TestImage(megabytes: 64)
        try image.change { _ = try $0.make("a") }
        image.overwrite(8)
        image.overwrite((64 << 20) / 4096 - 1)
        let before = bytes(image)
        let trial = daybook("fsck", "-n", image.path)
        #expect(trial.status == 4)
        #expect(trial.output.contains("E101") && trial.output.contains("E102"))
        #expect(holds(image, before))
        let done = daybook("fsck", "-p", image.path)
        #expect(done.status == 1, "\(done.output)\(done.errors)")
        #expect(daybook("fsck", "-n", "-f", image.path).status == 0)
        try expectUndo(image, before)
    }

    /// The undo file next to the image leads back to `before`, once.
    private func expectUndo(_ image: TestImage, _ before: [UInt8]) throws {
        let undo = image.path + ".undo-1"
        defer { unlink(undo) }
        let after = bytes(image)
        let trial = daybook("fsck", "-n", "--undo", undo, image.path)
        #expect(trial.status == 0, "\(trial.output)\(trial.errors)")
        #expect(holds(image, after), "-n changed the image")
        // Another image, and one that was changed since, are refused whole.
        let other = try TestImage(megabytes: 64)
        let untouched = bytes(other)
        #expect(daybook("fsck", "--undo", undo, other.path).status == 8)
        #expect(holds(other, untouched))
        let done = daybook("fsck", "--undo", undo, image.path)
        #expect(done.status == 1, "\(done.output)\(done.errors)")
        let isBack = bytes(image) == before
        #expect(isBack, "--undo leads elsewhere")
        // Nothing of an undo file may be wrong.
        var saved = ProcessFiles.contents(undo)!
        saved[saved.count - 5] ^= 1
        saved[40] ^= 1
        let descriptor = open(undo, O_RDWR)
        _ = saved.withUnsafeBytes { pwrite(descriptor, $0.baseAddress, $0.count, 0) }
        close(descriptor)
        #expect(daybook("fsck", "--undo", undo, image.path).status == 8)
        let isStill = bytes(image) == before
        #expect(isStill)
    }

    @Test func lossIsForThoseWhoAskForIt() throws {
        let image = try TestImage(megabytes: 64)
        try image.change { _ = try $0.make("a") }
        // The first frame of the retained journal.
        let chunk = bytes(image).withUnsafeBytes { all in
            (0..<all.count / 4096).first { all.loadUnaligned(fromByteOffset: $0 * 4096, as: UInt32.self).littleEndian == magicChunk }!
        }
        image.overwrite(UInt64(chunk) + 1)
        for option in ["-n", "-p"] {
            let before = bytes(image)
            let done = daybook("fsck", option, "-f", image.path)
            #expect(done.status == 4)
            #expect(done.output.contains("E302") && done.output.contains("would be lost: history is given up"), "\(done.output)")
            // Slots apart, which -p marks.
            #expect(bytes(image)[40960...] == before[40960...])
            #expect(option == "-p" || holds(image, before))
        }
        let before = bytes(image)
        let done = daybook("fsck", "-y", "-f", image.path)
        #expect(done.status == 1, "\(done.output)\(done.errors)")
        #expect(done.output.contains(": lost: history is given up") && done.output.contains(" saved to "))
        #expect(daybook("fsck", "-n", "-f", image.path).status == 0)
        #expect(daybook("digest", image.path).status == 0)
        try expectUndo(image, before)
    }

    @Test func nothingIsRepairedThatCannotBeSaved() throws {
        let image = try TestImage(megabytes: 64)
        image.overwrite(8)
        let before = bytes(image)
        let full = daybook("fsck", "-p", "--undo-file", "/dev/full", image.path)
        #expect(full.status == 8 && full.errors.contains("nothing was repaired"))
        #expect(daybook("fsck", "-p", "-z", "/nowhere/undo", image.path).status == 8)
        #expect(holds(image, before))
        let named = temporaryPath("undo")
        defer { unlink(named) }
        #expect(daybook("fsck", "-p", "-z", named, image.path).status == 1)
        #expect(daybook("fsck", "--undo", named, image.path).status == 1)
        #expect(holds(image, before))
        #expect(daybook("fsck", "-p", "--no-undo", image.path).status == 1)
        #expect(access(image.path + ".undo-1", F_OK) != 0)
        #expect(daybook("fsck", "-p", "--no-undo", "-z", named, image.path).status == 16)
        #expect(daybook("fsck", "--undo", named, "-y", image.path).status == 16)
    }

    @Test func damagedFileDataAreNamedAndLeftAsTheyAre() throws {
        let image = try TestImage(megabytes: 64)
        try image.change {
            try $0.make("hold this")
            try $0.write("hold this", Array("0123456789abcdef".utf8) + (0..<30_000).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) })
        }
        let start = bytes(image).withUnsafeBytes { all in
            (16..<all.count / 4096).first { all[$0 * 4096] == 0x30 && all[$0 * 4096 + 15] == 0x66 }!
        }
        image.overwrite(UInt64(start) + 3)
        let before = bytes(image)
        for option in ["-n", "-p", "-y"] {
            let done = daybook("fsck", option, "--data", image.path)
            #expect(done.status == 4, "\(done.output)\(done.errors)")
            #expect(done.output.contains("E418") && done.output.contains("offset 12288") && done.output.contains("(/hold this)"), "\(done.output)")
            let same = bytes(image) == before
            #expect(same)
        }
        #expect(daybook("fsck", "-f", image.path).status == 0)
    }

    @Test func stepsOfARepairAreShown() throws {
        let image = try TestImage(megabytes: 64)
        image.overwrite(0)
        let done = daybook("fsck", "-p", "-C1", "--no-undo", image.path)
        #expect(done.status == 1 && done.lines.contains { $0.hasPrefix("13 ") && $0.hasSuffix(image.path) }, "\(done.output)")
    }

    @Test func theTreeIsMadeFromTheJournalAlone() throws {
        let image = try crashed()
        let done = daybook("fsck", "-n", "--rebuild", image.path)
        #expect(done.status == 0, "\(done.output)\(done.errors)")
        #expect(done.output.contains("tree made from mkfs and the journal up to sequence 21") && done.output.contains("they are equal"), "\(done.output)")
    }

    @Test func whatIsNoFilesystemIsRefusedInOneLine() throws {
        let path = temporaryPath("foreign")
        defer { unlink(path) }
        let descriptor = open(path, O_RDWR | O_CREAT, 0o600)
        ftruncate(descriptor, 1 << 20)
        close(descriptor)
        for option in ["-n", "-y", "-f"] {
            let done = daybook("fsck", option, path)
            #expect(done.status == 8 && done.output.isEmpty && done.errors.split(separator: "\n").count == 1)
        }
        #expect((ProcessFiles.contents(path) ?? []).allSatisfy { $0 == 0 })
        #expect(daybook("fsck", path + "-not").status == 8)
        #expect(daybook("fsck", "-n", "-y", path).status == 16)
        #expect(daybook("fsck", "--what", path).status == 16)
        let image = try TestImage(megabytes: 64)
        truncate(image.path, 32 << 20)
        let done = daybook("fsck", "-y", image.path)
        #expect(done.status == 4 && done.errors.contains("truncated"))
    }

    /// The repair named the past states that are lost, up to the one before sequence 0.
    @Test func aNewFilesystemWithoutItsTree() throws {
        let image = try TestImage(megabytes: 64)
        let root = try Image(try FileDevice(path: image.path, access: .readOnly)).superblock.checkpoint.root.address
        image.overwrite(root.value)
        let result = daybook("fsck", "-n", "-f", image.path)
        #expect(result.status == 4 && result.output.contains("E401"), "\(result.status) \(result.output)\(result.errors)")
    }

    @Test func writersAreKeptOutAndRespected() throws {
        let image = try TestImage(megabytes: 64)
        let device = try FileDevice(path: image.path, access: .readWrite)
        do {
            let lock = try ImageLock.acquireWriter(descriptor: device.descriptor, path: image.path)
            for option in ["-n", "-y"] {
                let done = daybook("fsck", option, "-f", image.path)
                #expect(done.status == 8 && done.errors.contains("in use") && done.errors.contains("pid \(getpid())"))
            }
            lock.release()
        }
        // Checking keeps writers out, and not those who check.
        let reader = try FileDevice(path: image.path, access: .readOnly)
        let other = try FileDevice(path: image.path, access: .readOnly)
        let lock = try ImageLock.excludeWriters(descriptor: reader.descriptor, path: image.path)
        let second = try ImageLock.excludeWriters(descriptor: other.descriptor, path: image.path)
        #expect(throws: LockError.self) { try ImageLock.acquireWriter(descriptor: device.descriptor, path: image.path) }
        #expect(daybook("fsck", "-n", "-f", image.path).status == 0)
        second.release()
        lock.release()
        _ = try ImageLock.acquireWriter(descriptor: device.descriptor, path: image.path)
        withExtendedLifetime((device, reader, other)) {}
    }

    @Test func progressIsWritten() throws {
        let image = try TestImage(megabytes: 64)
        let done = daybook("fsck", "-f", "-C1", image.path)
        #expect(done.status == 0)
        #expect(done.lines.contains("6 100 100 \(image.path)"))
        #expect(daybook("fsck", "-f", "-C77", image.path).status == 16)
    }

    /// What a check has found and left, a later run that would believe the clean unmount must not take for clean; nor may it be mounted
    /// for writing.
    @Test func whatWasFoundAndLeftIsNotForgotten() throws {
        for isCrashed in [false, true] {
            let image = try TestImage(megabytes: 64)
            try image.change { _ = try $0.make("a") }
            try image.change(crash: isCrashed) { volume in
                _ = try volume.make("b")
                try volume.volume.commit()
            }
            // The oldest tree, which only the past needs.
            let device = try FileDevice(path: image.path, access: .readOnly)
            let root = try Space.openIndex(SlotState(device).newest, device: device).checkpoints()[0].root.address
            image.overwrite(root.value)
            let found = daybook("fsck", "-f", image.path)
            #expect(found.status & 4 != 0, "\(found.output)\(found.errors)")
            #expect(found.output.contains("marked as damaged"), "\(found.output)")
            #expect(throws: OpenError.self) { try image.change { _ in } }
            for option in ["-n", "-p"] {
                let again = daybook("fsck", option, image.path)
                #expect(again.status == 4 && again.output.contains("E105"), "\(again.status) \(again.output)\(again.errors)")
            }
            let done = daybook("fsck", "-y", image.path)
            #expect(done.status == 1, "\(done.output)\(done.errors)")
            #expect(daybook("fsck", image.path).output.contains(": clean"))
            try image.change { _ = try $0.make("c") }
            unlink(image.path + ".undo-1")
        }
    }

    @Test func nothingIsRepairedUnderAReader() throws {
        let image = try TestImage(megabytes: 64)
        try image.change { _ = try $0.make("a") }
        image.overwrite(8)
        let before = bytes(image)
        let device = try FileDevice(path: image.path, access: .readOnly)
        do {
            let pin = try ImageLock.pin(descriptor: device.descriptor, sequence: SequenceNumber(1))
            let done = daybook("fsck", "-p", image.path)
            #expect(done.status == 8 && done.errors.contains("is being read"), "\(done.output)\(done.errors)")
            #expect(holds(image, before) && access(image.path + ".undo-1", F_OK) != 0)
            pin.release()
        }
        #expect(daybook("fsck", "-p", image.path).status == 1)
        let after = bytes(image)
        let pin = try ImageLock.pin(descriptor: device.descriptor, sequence: SequenceNumber(1))
        #expect(daybook("fsck", "--undo", image.path + ".undo-1", image.path).status == 8)
        #expect(holds(image, after))
        pin.release()
        try expectUndo(image, before)
        withExtendedLifetime(device) {}
    }

    @Test func bothSlotsAndTheirSurroundingsOverwritten() throws {
        let image = try TestImage(megabytes: 64)
        try image.change {
            _ = try $0.make("a")
            try $0.write("a", [1, 2, 3])
        }
        let digest = daybook("digest", image.path).output
        let descriptor = open(image.path, O_RDWR)
        defer { close(descriptor) }
        let zeros = [UInt8](repeating: 0, count: 65536)
        #expect(pwrite(descriptor, zeros, zeros.count, 0) == zeros.count)
        #expect(daybook("fsck", "-n", image.path).status == 4)
        // What has come in its place may be wanted.
        var signature = [UInt8](repeating: 0, count: 4096)
        signature[1024] = 1
        signature.replaceSubrange(1028..<1032, with: [16, 0, 0, 0])
        signature.replaceSubrange(4086..<4096, with: Array("SWAPSPACE2".utf8))
        #expect(pwrite(descriptor, signature, signature.count, 0) == signature.count)
        let before = bytes(image)
        let refused = daybook("fsck", "-y", image.path)
        #expect(refused.status == 8 && refused.errors.contains("contains swap"), "\(refused.output)\(refused.errors)")
        #expect(holds(image, before))
        #expect(pwrite(descriptor, zeros, zeros.count, 0) == zeros.count)
        let done = daybook("fsck", "-y", image.path)
        #expect(done.status == 1, "\(done.output)\(done.errors)")
        #expect(daybook("digest", image.path).output == digest)
        unlink(image.path + ".undo-1")
    }

    /// In a directory for everybody, anybody may have put a link where the undo file is to be.
    @Test func aLinkIsNotInTheWayOfTheUndoFile() throws {
        let image = try TestImage(megabytes: 64)
        image.overwrite(8)
        #expect(symlink("/nowhere/at all", image.path + ".undo-1") == 0)
        defer { for number in 1...2 { unlink("\(image.path).undo-\(number)") } }
        #expect(daybook("fsck", "-p", image.path).status == 1)
        #expect(access(image.path + ".undo-2", F_OK) == 0)
        let named = temporaryPath("undo")
        defer { unlink(named) }
        image.overwrite(8)
        #expect(daybook("fsck", "-pz" + named, image.path).status == 1)
        #expect(access(named, F_OK) == 0)
    }

    @Test func aFifoIsNoImage() throws {
        let path = temporaryPath("fifo")
        #expect(mkfifo(path, 0o600) == 0)
        defer { unlink(path) }
        for words in [["-n", path], ["-n", "--undo", path, path]] {
            let done = words.count == 2 ? daybook("fsck", words[0], words[1]) : daybook("fsck", words[0], words[1], words[2], words[3])
            #expect(done.status == 8 && done.errors.contains("neither a regular file nor a block device"))
        }
    }
}
