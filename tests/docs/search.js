// Ask the site's search worker, which is the code that runs in the browser: node search.js WORKER INDEX QUERY ...
const fs = require("fs")
const vm = require("vm")

const [worker, index, ...queries] = process.argv.slice(2)
const [SETUP, QUERY] = [0, 2]
let handle, answer
globalThis.self = globalThis
globalThis.addEventListener = (_, handler) => { handle = handler }
globalThis.postMessage = message => answer(message)
vm.runInThisContext(fs.readFileSync(worker, "utf8"))

const ask = (type, data) => new Promise(resolve => {
  answer = resolve
  handle({ data: { type, data } })
})

async function main() {
  await ask(SETUP, { ...JSON.parse(fs.readFileSync(index, "utf8")), options: {} })
  const found = {}
  for (const query of queries) {
    const { items } = (await ask(QUERY, query)).data
    found[query] = items.map(page => page.map(section => section.location))
  }
  console.log(JSON.stringify(found))
}

main()
