// Sends one request and prints the flow run record.
//   npm install
//   node create.mjs FLOW_ID [IDEMPOTENCY_KEY]
//   node create.mjs "FLOW NAME/DEPLOYMENT NAME" [IDEMPOTENCY_KEY] [PARAMETERS, a JSON object]
import amqp from "amqplib";
import { randomUUID } from "node:crypto";

const url = process.env.WORKER_AMQP_URL ?? "amqp://guest:guest@localhost:5672/";
const queue = process.env.WORKER_QUEUE ?? "flow-runs.create";
const [what, idempotencyKey, parameters] = process.argv.slice(2);
// The run gets the deployment's parameters, tags, job variables and work queue.
const isDeployment = what?.includes("/");

const connection = await amqp.connect(url);
const channel = await connection.createConfirmChannel();
channel.on("return", () => {
  console.error(`There is no queue ${queue}: has a worker declared it?`);
  process.exit(1);
});

const id = randomUUID();
const reply = new Promise((resolve) =>
  channel.consume("amq.rabbitmq.reply-to", (message) => message.properties.correlationId === id && resolve(message), {
    noAck: true,
  }),
);

const request = {
  ...(isDeployment ? { deployment_name: what } : { flow_id: what }),
  idempotency_key: idempotencyKey,
  parameters: parameters ? JSON.parse(parameters) : isDeployment ? {} : { from: "node" },
};
channel.sendToQueue(queue, Buffer.from(JSON.stringify(request)), {
  contentType: "application/json",
  type: isDeployment ? "create_flow_run_from_deployment" : undefined,
  persistent: true,
  mandatory: true,
  replyTo: "amq.rabbitmq.reply-to",
  correlationId: id,
  messageId: id, // makes a second publish of the same message safe
});
await channel.waitForConfirms();

const { properties, content } = await reply;
console.log(properties.headers.status, properties.type);
console.log(JSON.stringify(JSON.parse(content), null, 2));
await connection.close();
process.exitCode = properties.headers.status < 400 ? 0 : 1;
