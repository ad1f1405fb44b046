// Goal (P7): any image gives an error or is served; no trap, no hang, no write outside of it.
// Method: Sources/Fuzzing. Every line of `corpus.txt` once was too much for us, or is one of a kind; and some mutants are drawn.
// Tools/fuzz goes further. A trap ends the test run: the recipe is printed before.

import Check
import Device
import Format
import Foundation
import Memory
import Testing
import Volume

@testable import Fuzzing

private let maps = BaseImage.allCases.map { try! ImageMap($0.make()) }

private let corpus: [Recipe] = {
    let path = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("corpus.txt")
    let lines = try! String(contentsOf: path, encoding: .utf8).split(separator: "\n")
    return lines.filter { !$0.hasPrefix("#") }.map { line in
        guard let recipe = Recipe(String(line)) else { preconditionFailure("no recipe: \(line)") }
        return recipe
    }
}()

@Suite(.timeLimit(.minutes(5))) struct FuzzingTests {
    private func run(_ recipe: Recipe) {
        guard let disk = recipe.apply(maps[recipe.base.rawValue]) else {
            Issue.record("\(recipe): a part does not exist")
            return
        }
        FileHandle.standardError.write(Data("\(recipe)\n".utf8))
        #expect(Trial(disk, random: 1, stage: { _ in }).run() == [], "\(recipe)")
    }

    @Test(arguments: corpus) func corpusIsSurvived(_ recipe: Recipe) { run(recipe) }

    @Test func drawnMutantsAreSurvived() {
        let mutator = Mutator(maps)
        for number in 0..<12 as Range<UInt64> { run(mutator.recipe(seed: 20, number: number)) }
    }

    /// What the mutants are made from is in order, the same each time, and has every part that there is.
    @Test func theBasesAreWhole() throws {
        for base in BaseImage.allCases {
            let disk = try base.make()
            #expect(try base.make().contents == disk.contents, "\(base)")
            var options = CheckOptions()
            options.verifyData = true
            let overlay = OverlayDevice(disk)
            let volume = try Volume.open(overlay, options: OpenOptions(), clock: { Timestamp(nanoseconds: 1_700_100_000_000_000_000) }, random: { 1 }, onEvent: { _ in })
            try volume.close()
            #expect(try Checker(overlay, options: options).run().findings.map(\.description) == [])
        }
        let kinds = Set(maps.flatMap { map in map.parts.map(\.kind) })
        #expect(kinds == Set(PartKind.allCases))
    }

    /// A change of what nothing depends on is mended so that nothing notices; without mending everything does.
    @Test func mendingPutsChecksumsRight() throws {
        for base in BaseImage.allCases {
            let map = maps[base.rawValue]
            let whole = try base.make()
            let clean = try damage(whole)
            #expect(clean == [], "\(base): \(clean)")
            // The time of a checkpoint, of a record and of an inode; the user of a record; a zone's class in a bitmap.
            for (kind, offset, width) in [(PartKind.slot, 200, 8), (.frame, 128 + 24, 4), (.bitmap, 64 + 9, 1), (.chunkHeader, 4000, 1), (.identity, 200, 8)] {
                for part in (map.byKind[kind] ?? []).prefix(3) + (map.byKind[kind] ?? []).suffix(2) {
                    let poke = Recipe.Step.poke(part: part, offset: offset, width: width, value: 3)
                    let mended = try #require(Recipe(base: base, mends: true, steps: [poke]).apply(map))
                    #expect(mended.contents != whole.contents)
                    let found = try damage(mended)
                    #expect(found == [], "\(base), \(kind) \(part)")
                    let spoilt = try #require(Recipe(base: base, mends: false, steps: [poke]).apply(map))
                    // The end of the journal may be torn without any harm; of two bitmaps of a region only one counts.
                    if kind == .slot || kind == .identity { #expect(try damage(spoilt) != [], "\(base), \(kind) \(part)") }
                }
            }
        }
    }

    private func damage(_ disk: MutantDisk) throws -> [String] {
        var found: [String] = []
        _ = try Scrubber(disk, hasWriter: { false }, onDamage: { found.append("\($0.kind) \($0.block?.value ?? 0) \($0.text)") }).run()
        return found
    }

    @Test func recipesAreTextAndBack() {
        let mutator = Mutator(maps)
        for number in 0..<500 as Range<UInt64> {
            let recipe = mutator.recipe(seed: 7, number: number)
            #expect(Recipe(recipe.description) == recipe)
            #expect(mutator.recipe(seed: 7, number: number) == recipe)
        }
        for text in ["", "other", "worked mend; poke 1 2 3", "worked; fly 3", "worked mend; copy 1", "fresh mended"] { #expect(Recipe(text) == nil, "\(text)") }
    }
}
