// What speedscope's own schema and importer make of a file: `node speedscoping.mjs FOLDER FILE`,
// where FOLDER has the npm packages speedscope and ajv. Prints a JSON object.
import { readFileSync, readdirSync } from "node:fs"
import { createRequire } from "node:module"
import vm from "node:vm"

const [folder, file] = process.argv.slice(2)
const require = createRequire(folder + "/")
const release = folder + "/node_modules/speedscope/dist/release/"
const text = readFileSync(file, "utf8")

const Ajv = require("ajv").default
const schema = JSON.parse(readFileSync(release + "file-format-schema.json", "utf8"))
const validate = new Ajv({ strict: false }).compile(schema)
const errors = validate(JSON.parse(text)) ? [] : validate.errors

// The importer is inside the page's one script: let it out, and let the page itself fail.
const script = readdirSync(release).find((name) => /^speedscope-.*\.js$/.test(name))
const source = readFileSync(release + script, "utf8")
const [, init, exported] = source.match(
  /Promise\.resolve\(\)\.then\(\(\)=>\((\w+)\(\),(\w+)\)\);\w+\.then\(\(\)=>\{\}\)/,
)
const opened = source.replace(
  `var ${exported}={};`,
  `var ${exported}={};globalThis.importer=()=>(${init}(),${exported});`,
)
const page = vm.createContext({ console, TextDecoder, TextEncoder, performance, setTimeout })
try {
  vm.runInContext(opened, page)
} catch {
  // no window here
}
process.on("uncaughtException", (error) => {
  console.log(JSON.stringify({ errors: [String(error)], profiles: [] }))
  process.exit(1) // Node would print the whole script
})
const group = await page.importer().importProfileGroupFromText("a.speedscope.json", text)
const profiles = (group?.profiles ?? []).map((profile) => {
  const frames = {}
  profile.forEachFrame((frame) => {
    frames[`${frame.name} (${frame.file}:${frame.line})`] = [frame.getSelfWeight(), frame.getTotalWeight()]
  })
  return {
    name: profile.getName(),
    unit: profile.getWeightUnit(),
    total: profile.getTotalWeight(),
    frames,
  }
})
console.log(JSON.stringify({ errors, active: group?.indexToView, profiles }))
